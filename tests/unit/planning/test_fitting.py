"""Rates that explain measured times: what the formulas say of a machine is found again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Cut
from fedsea_mq.planning.fitting import (
    CHUNK,
    CHUNK_START,
    LONG,
    SESSIONS,
    SHORT,
    WIDE_NEW,
    BlockTimes,
    SystemRun,
    block_rates,
    client_rates,
    in_place,
    system_times,
)
from fedsea_mq.planning.forecast import Demand
from fedsea_mq.planning.holdings import Holdings
from fedsea_mq.planning.machine import Machine
from tests.unit.planning.speeds import GB, LLAMA_2_7B, forecaster, speed

SIZES = Holdings(LLAMA_2_7B, Numerics("fp16"))
KNOWN = speed(pass_s=1e-4, block_s=2e-4, attention_flops_per_s=20 * GB, kv_bytes_per_s=3 * GB)


def times_of(machine: Machine, blocks: int = 3) -> BlockTimes:
    """What a machine of known rates would be measured to take."""
    rates = machine.speed.blocks
    return BlockTimes(
        blocks=blocks,
        narrow_one_s=rates.pass_s + rates.block_s,
        narrow_s=rates.pass_s + blocks * rates.block_s,
        short_s=machine.step_s(blocks, 1, SHORT),
        long_s=machine.step_s(blocks, 1, LONG),
        sessions_s=machine.step_s(blocks, SESSIONS, SHORT),
        chunk_s=machine.chunk_s(blocks, CHUNK, 0),
        later_chunk_s=machine.chunk_s(blocks, CHUNK, CHUNK_START),
        logits_s=machine.logits_s,
        states_s=machine.states_s(CHUNK),
    )


def test_the_rates_of_a_known_machine_are_found_again() -> None:
    times = times_of(Machine.running(LLAMA_2_7B, KNOWN))
    found = block_rates(times, SIZES)
    assert found.model_dump() == pytest.approx(KNOWN.blocks.model_dump(), rel=1e-6)
    assert client_rates(times, SIZES).model_dump() == pytest.approx(KNOWN.client.model_dump())


def test_a_system_is_what_is_left_of_a_token_without_blocks() -> None:
    run = SystemRun(0.0002, 0.008, 0.005, 400, 300, 1.0, 1.0)
    found = system_times(run, KNOWN.blocks)
    assert found.relay_s == pytest.approx(0.0004)
    assert found.token_s == pytest.approx(0.005 - 0.0004 - 3 * 3e-4)
    assert found.open_s == pytest.approx(0.003)


def test_blocks_that_are_slower_in_a_system_are_planned_so() -> None:
    """A system whose steps take twice, and whose chunks three times, what they do in a loop."""
    known = KNOWN.model_copy(
        update={
            "blocks": KNOWN.blocks.model_copy(
                update={
                    "pass_s": 2 * KNOWN.blocks.pass_s,
                    "block_s": 2 * KNOWN.blocks.block_s,
                    "weight_bytes_per_s": KNOWN.blocks.weight_bytes_per_s / 2,
                    "step_flops_per_s": KNOWN.blocks.step_flops_per_s / 2,
                    "kv_bytes_per_s": KNOWN.blocks.kv_bytes_per_s / 2,
                    "chunk_flops_per_s": KNOWN.blocks.chunk_flops_per_s / 3,
                    "attention_flops_per_s": KNOWN.blocks.attention_flops_per_s / 3,
                }
            )
        }
    )
    blocks, demand = 5, Demand(CHUNK, WIDE_NEW + 2)
    of = replace(LLAMA_2_7B, blocks=blocks)
    said = forecaster(of, demand=demand, client=known, trunk=known).forecast(Cut(1, 1))
    run = SystemRun(0.0, 0.0, 0.0, 0, 0, said.ttft_s, said.tpot_s)
    found = in_place(KNOWN, SIZES, run, blocks)
    assert found.model_dump() == pytest.approx(known.blocks.model_dump(), rel=1e-6)


def test_a_disturbed_loop_does_not_make_a_system_faster() -> None:
    run = SystemRun(0.0, 0.0, 0.0, 0, 0, 1e-6, 1e-6)
    assert in_place(KNOWN, SIZES, run, 3) == KNOWN.blocks


def test_times_that_contradict_each_other_give_rates_all_the_same() -> None:
    """A disturbed machine measures more work as faster; a plan from it is bad, but is one."""
    backwards = BlockTimes(2, 3e-3, 1e-3, 5e-3, 4e-3, 3e-3, 2e-3, 1e-3, 1e-3, 1e-3)
    rates = block_rates(backwards, SIZES)
    assert all(value >= 0 for value in rates.model_dump().values())


def test_of_repeats_the_shortest_time_counts() -> None:
    fast, slow = SystemRun(1, 2, 9, 4, 5, 6, 7), SystemRun(2, 1, 3, 5, 4, 7, 6)
    assert SystemRun.of([fast, slow]) == SystemRun(1, 1, 3, 4, 4, 6, 6)
