"""From a few measured times to the rates that explain them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final, Self

from fedsea_mq.planning.holdings import Holdings
from fedsea_mq.planning.machine import Machine
from fedsea_mq.planning.speed import BlockRates, ClientRates, Speed, SystemTimes

# What is timed: a step at a short and at a long context, a step of several sessions, and a chunk
# at the beginning of a session and further on.
SHORT: Final = 32
LONG: Final = 512
SESSIONS: Final = 16
CHUNK: Final = 128
CHUNK_START: Final = 512
# The model that weighs next to nothing: each party has one of its blocks.
NARROW_PARTS: Final = 3
WIDE_NEW: Final = 16
# Of a difference between two times that is all noise, so much of the larger is taken.
_LEAST_SHARE: Final = 0.02


@dataclass(frozen=True, slots=True)
class _Best:
    """Times of which the shortest counts: whatever disturbs one makes it longer."""

    @classmethod
    def of(cls, repeats: Sequence[Self]) -> Self:
        """The shortest of each."""
        return cls(*(min(getattr(one, part.name) for one in repeats) for part in fields(cls)))


@dataclass(frozen=True, slots=True)
class BlockTimes(_Best):
    """Seconds of runs of blocks: `SESSIONS` and the like say of what.

    Those of the model's own size are through `blocks` blocks, and so is `narrow_s`, of blocks that
    are next to nothing; `narrow_one_s` is through one such block.
    """

    blocks: int
    narrow_one_s: float
    narrow_s: float
    short_s: float
    long_s: float
    sessions_s: float
    chunk_s: float
    later_chunk_s: float
    logits_s: float
    """The logits of one position, and the largest of them."""
    states_s: float
    """Noise on the states of `CHUNK` positions, encoding and decoding."""


@dataclass(frozen=True, slots=True)
class SystemRun(_Best):
    """Real systems at cut 1+1: one whose model is next to nothing, and one with wide blocks."""

    status_s: float
    """A request to the broker and its answer."""
    ttft_s: float
    """Of a prompt of one token, where the model is next to nothing; and so on."""
    tpot_s: float
    client_process_bytes: int
    trunk_process_bytes: int
    wide_ttft_s: float
    """Of a prompt of `CHUNK` tokens, with blocks of the model's own size."""
    wide_tpot_s: float
    """Of the `WIDE_NEW` tokens after it."""


def block_rates(times: BlockTimes, sizes: Holdings) -> BlockRates:
    """The rates at which the formulas of `machine` give these times back.

    Each is from the difference between two times. The parts add up: on CPUs, reading the weights
    and computing with them were not found to overlap.
    """
    of, n = sizes.of, times.blocks
    block_s = _difference(times.narrow_s, times.narrow_one_s) / max(1, n - 1)
    pass_s = max(0.0, times.narrow_one_s - block_s)
    kv_s = _difference(times.long_s, times.short_s) / n / (LONG - SHORT)
    each_s = _difference(times.sessions_s, times.short_s) / n / (SESSIONS - 1)
    step_s = _difference(each_s, SHORT * kv_s)
    read_s = _difference((times.short_s - pass_s) / n, block_s + SHORT * kv_s + step_s)
    first, later = (of.attention_flops(CHUNK, start) for start in (0, CHUNK_START))
    attended_s = _difference(times.later_chunk_s, times.chunk_s) / n / (later - first)
    fixed_s = block_s + read_s + first * attended_s
    chunk_s = _difference((times.chunk_s - pass_s) / n, fixed_s)
    return BlockRates(
        pass_s=pass_s,
        block_s=block_s,
        weight_bytes_per_s=sizes.block_product_bytes / read_s,
        step_flops_per_s=of.block_flops / step_s,
        kv_bytes_per_s=sizes.kv_bytes(1) / kv_s,
        chunk_flops_per_s=CHUNK * of.block_flops / chunk_s,
        attention_flops_per_s=1 / attended_s,
    )


def client_rates(times: BlockTimes, sizes: Holdings) -> ClientRates:
    """What a client computes beside blocks."""
    return ClientRates(
        lm_head_bytes_per_s=sizes.lm_head_bytes / times.logits_s,
        state_elements_per_s=CHUNK * sizes.of.hidden / times.states_s,
    )


def system_times(run: SystemRun, rates: BlockRates) -> SystemTimes:
    """What of a token is neither blocks nor, on a real link, the link.

    A request to the broker crosses one of the two sockets that one to the trunk crosses.
    """
    relay_s = 2 * run.status_s
    computed_s = NARROW_PARTS * (rates.pass_s + rates.block_s)
    return SystemTimes(
        relay_s=relay_s,
        token_s=max(0.0, run.tpot_s - relay_s - computed_s),
        open_s=max(0.0, run.ttft_s - run.tpot_s),
        client_process_bytes=run.client_process_bytes,
        trunk_process_bytes=run.trunk_process_bytes,
    )


def in_place(speed: Speed, sizes: Holdings, run: SystemRun, blocks: int) -> BlockRates:
    """The rates of a `speed` that was measured in a loop, as they are between messages.

    There caches are cold and other threads want the interpreter. The wide system, of so many
    `blocks`, says how much longer a step takes, and then a chunk.
    """
    machine, system, rates = Machine(speed, sizes), speed.system, speed.blocks
    parts = (1, blocks - 2, 1)
    around_s = system.relay_s + system.token_s + machine.logits_s
    context = CHUNK + WIDE_NEW // 2
    step_s = sum(machine.step_s(part, 1, context) for part in parts)
    slower = _factor(run.wide_tpot_s - around_s - machine.states_s(1), step_s)
    fixed_s = slower * sum(machine.step_s(part, 0, 0) for part in parts)
    chunk_s = sum(machine.chunk_s(part, CHUNK, 0) - machine.step_s(part, 0, 0) for part in parts)
    prompt_s = run.wide_ttft_s - system.open_s - around_s - machine.states_s(CHUNK)
    chunk_slower = _factor(prompt_s - fixed_s, chunk_s)
    return BlockRates(
        pass_s=rates.pass_s * slower,
        block_s=rates.block_s * slower,
        weight_bytes_per_s=rates.weight_bytes_per_s / slower,
        step_flops_per_s=rates.step_flops_per_s / slower,
        kv_bytes_per_s=rates.kv_bytes_per_s / slower,
        chunk_flops_per_s=rates.chunk_flops_per_s / chunk_slower,
        attention_flops_per_s=rates.attention_flops_per_s / chunk_slower,
    )


def _factor(in_system_s: float, in_loop_s: float) -> float:
    """How much longer it takes; never less, which a disturbed loop would say."""
    return max(1.0, in_system_s / in_loop_s)


def _difference(more_s: float, less_s: float) -> float:
    return max(more_s - less_s, _LEAST_SHARE * max(more_s, less_s))
