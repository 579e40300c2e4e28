"""What a second rank makes of a step, beside one rank with one thread, and with two."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

import torch

from fedsea_mq.cli.bench.comparison import Comparison, Ratio, Repeat
from fedsea_mq.cli.bench.engine_loop import step_seconds
from fedsea_mq.cli.bench.two_widths import at_two_widths, ratios_of_both
from fedsea_mq.cli.bench.workbench import Workbench
from fedsea_mq.model.checkpoint import Checkpoint
from nodes.trunk.engine import TrunkEngine

_CONTEXT: Final = 512
_SESSIONS: Final = (1, 16, 64)
_STEPS: Final = 32
_RANKS: Final = 2


async def _repeat(bench: Workbench) -> Repeat:
    return await at_two_widths(bench, _compared)


async def _compared(bench: Workbench) -> Repeat:
    one = await _step_ms(bench, ranks=1)
    threads = await _step_ms(bench.threads(_RANKS), ranks=1)
    ranks = await _step_ms(bench, ranks=_RANKS)
    ratios = {_named(each): one[each] / ranks[each] for each in _SESSIONS}
    ratios |= {
        _over_threads(sessions): threads[sessions] / ranks[sessions] for sessions in _SESSIONS
    }
    return ratios, {"one_rank_ms": one, "one_rank_two_threads_ms": threads, "two_ranks_ms": ranks}


async def _step_ms(bench: Workbench, ranks: int) -> dict[int, float]:
    """Median step of so many sessions that decode in lockstep."""
    settings = bench.settings.replace(trunk={"tensor_parallel": ranks})
    hidden = Checkpoint.open(settings.model.path).hidden
    async with TrunkEngine(settings, "bench") as engine:
        run = engine.loaded.run

        def step_ms(sessions: int) -> float:
            # Counts for the thread that says it.
            torch.set_num_threads(settings.model.threads)
            return 1000 * step_seconds(run, hidden, sessions, _CONTEXT, _STEPS)

        return {sessions: await asyncio.to_thread(step_ms, sessions) for sessions in _SESSIONS}


def _named(sessions: int) -> str:
    return f"two_ranks_{sessions}"


def _over_threads(sessions: int) -> str:
    return f"two_ranks_vs_threads_{sessions}"


def _ratios(prefix: str, model: str) -> Iterator[Ratio]:
    for sessions in _SESSIONS:
        yield Ratio(
            prefix + _named(sessions),
            f"{model}: step time of one rank over that of two, a thread each; {sessions} sessions, "
            f"context {_CONTEXT}",
        )
        yield Ratio(
            prefix + _over_threads(sessions),
            f"{model}: the same, the one rank with two threads; {sessions} sessions",
        )


TENSOR_PARALLEL: Final = Comparison("tensor_parallel", ratios_of_both(_ratios), _repeat)
