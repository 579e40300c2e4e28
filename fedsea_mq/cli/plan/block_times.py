"""Times blocks, logits and states on this machine, in this process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch

from fedsea_mq.cli.plan.random_model import enough_blocks, write_blocks, write_narrow
from fedsea_mq.model.attention import Span
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Cut
from fedsea_mq.model.parts import BlockRun, Tail, load_client, load_trunk
from fedsea_mq.model.wire_states import decode_states, encode_states
from fedsea_mq.planning.architecture import Architecture
from fedsea_mq.planning.fitting import CHUNK, CHUNK_START, LONG, SESSIONS, SHORT, BlockTimes
from fedsea_mq.planning.holdings import Holdings
from fedsea_mq.privacy.noise import NoiseSource
from fedsea_mq.protocol.payload import PayloadSpec
from fedsea_mq.settings import Settings

_ALL_IN_ONE: Final = Cut(0, 0)
# Medians are over so many runs; there is one at least, and as many as take so long.
_RUNS: Final = 5
_SECONDS: Final = 0.4


def time_blocks(config: Any, settings: Settings) -> BlockTimes:
    """Measure random weights of the config's sizes, with the settings' numerics. Takes seconds.

    Memory for the blocks and the vocabulary is needed, here and in a temporary folder.
    """
    numerics = Numerics.of(settings.model)
    sizes = Holdings(Architecture.of(config), numerics)
    blocks = enough_blocks(sizes)
    torch.set_num_threads(settings.model.threads)
    with tempfile.TemporaryDirectory(prefix="fedsea-plan-") as name, torch.inference_mode():
        folder = Path(name)
        write_blocks(config, blocks, folder / "blocks", numerics.weights)
        one, several = (_narrow(folder, count, numerics) for count in (1, blocks))
        checkpoint = Checkpoint.open(str(folder / "blocks"))
        own = _Timed(load_trunk(checkpoint, _ALL_IN_ONE, numerics), checkpoint.hidden)
        _, tail = load_client(checkpoint, _ALL_IN_ONE, numerics)
        return BlockTimes(
            blocks=blocks,
            narrow_one_s=one.seconds(1, 1, SHORT),
            narrow_s=several.seconds(1, 1, SHORT),
            short_s=own.seconds(1, 1, SHORT),
            long_s=own.seconds(1, 1, LONG),
            sessions_s=own.seconds(SESSIONS, 1, SHORT),
            chunk_s=own.seconds(1, CHUNK, 0),
            later_chunk_s=own.seconds(1, CHUNK, CHUNK_START),
            logits_s=_logits_s(tail, own),
            states_s=_states_s(PayloadSpec(settings.client.wire_dtype, checkpoint.hidden)),
        )


def _narrow(folder: Path, blocks: int, numerics: Numerics) -> _Timed:
    here = folder / f"narrow-{blocks}"
    write_narrow(here, blocks)
    checkpoint = Checkpoint.open(str(here))
    return _Timed(load_trunk(checkpoint, _ALL_IN_ONE, numerics), checkpoint.hidden)


@dataclass(frozen=True, slots=True)
class _Timed:
    """Blocks to run, and the width of their states."""

    run: BlockRun
    hidden: int

    def states(self, count: int) -> torch.Tensor:
        """Random ones, `[count, hidden]`."""
        device = self.run.kv_shape.device
        return torch.randn(count, self.hidden, device=device, dtype=self.run.dtype)

    def seconds(self, sessions: int, count: int, start: int) -> float:
        """`count` positions of each session behind `start` cached ones, and out of the device.

        Each time with new caches, as a new session has them.
        """
        states = self.states(sessions * count)

        def spans() -> list[Span]:
            caches = [self.run.new_cache(start + count) for _ in range(sessions)]
            shape = self.run.kv_shape
            filling = torch.randn(shape.kv_heads, start, shape.head_dim, device=shape.device)
            for cache in caches:
                for block in shape.blocks:
                    cache.write(block, 0, filling, filling)
            return [Span(cache, start, count) for cache in caches]

        return _undisturbed_seconds(spans, lambda spans: self.run(states, spans).cpu())


def _logits_s(tail: Tail, own: _Timed) -> float:
    states, spans = own.states(1), [Span(own.run.new_cache(1), 0, 1)]
    return _undisturbed_seconds(
        lambda: spans, lambda spans: int(tail.logits(states, spans)[0].argmax())
    )


def _states_s(spec: PayloadSpec) -> float:
    """Noise, as a client draws it, and the way into bytes and back."""
    source = NoiseSource(1.0, "plan")
    digests = source.chain().extend(0, range(CHUNK))
    states = torch.randn(CHUNK, spec.hidden)

    def there_and_back(_: None) -> None:
        parts = encode_states(source.add(states, digests), spec.dtype)
        decode_states(parts, CHUNK, spec, torch.float32)

    return _undisturbed_seconds(lambda: None, there_and_back)


def _undisturbed_seconds(prepare: Callable[[], Any], work: Callable[[Any], object]) -> float:
    """The work's time, the least of medians over a few runs; what prepares it is not counted."""
    taken: list[float] = []
    until = time.perf_counter() + _SECONDS
    while len(taken) <= _RUNS or time.perf_counter() < until:
        prepared = prepare()
        begun = time.perf_counter()
        work(prepared)
        taken.append(time.perf_counter() - begun)
    starts = range(1, len(taken) - _RUNS + 1, _RUNS)  # the first run warms up
    return min(median(taken[start : start + _RUNS]) for start in starts)
