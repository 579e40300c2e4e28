"""Micro-batches keep the stages of a chain at work: the rule, and a chain in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from random import Random

import pytest
import torch

from fedsea_mq.model.attention import Span
from fedsea_mq.model.kv_cache import KVCache, KVShape
from fedsea_mq.serving.micro_batches import MicroBatches
from fedsea_mq.serving.scheduler import Owner, StepLimits
from fedsea_mq.serving.work import Forward, Work
from fedsea_mq.simulation.compute import VirtualBatcher
from fedsea_mq.simulation.trace import Trace
from fedsea_mq.simulation.world import Process, World

_SHAPE = KVShape(range(0), 1, 1, torch.float32, "cpu")
SESSIONS = [b"%d" % number for number in range(16)]


def test_a_whole_trunk_has_no_bound() -> None:
    batches = MicroBatches(1)
    batches.took(SESSIONS)
    assert batches.most(SESSIONS) is None


def test_sessions_that_wait_for_the_first_time_are_divided() -> None:
    assert MicroBatches(2).most(SESSIONS) == 8
    assert MicroBatches(3).most(SESSIONS) == 6
    assert MicroBatches(3).most(SESSIONS[:1]) == 1


def test_who_is_at_another_stage_counts() -> None:
    batches = MicroBatches(2)
    batches.took(SESSIONS[:8])
    assert batches.most(SESSIONS[8:]) == 8


def test_who_has_not_come_for_two_rounds_does_not_count() -> None:
    batches = MicroBatches(2)
    batches.took(SESSIONS)
    for _ in range(4):
        batches.took(SESSIONS[:4])
    assert batches.most(SESSIONS[:4]) == 2


def test_steps_that_are_too_small_grow_again() -> None:
    batches = MicroBatches(2)
    for start in range(0, 16, 4):
        batches.took(SESSIONS[start : start + 4])
    assert batches.most(SESSIONS[:4]) == 8


class Chain:
    """Stages in virtual time, each as slow as it is said to be, and sessions that go round."""

    def __init__(self, slowness: Sequence[float], travel_s: float) -> None:
        depths = [max(1, round(sum(slowness) / slow)) for slow in slowness]
        self.stages = [
            VirtualBatcher(StepLimits(1024), max_wait_s=0.01, depth=depth) for depth in depths
        ]
        self._passes = [self._pass(n, slow) for n, slow in enumerate(slowness)]
        self._travel_s = travel_s
        self._draw = Random(0)

    def _pass(self, stage: int, slow: float) -> Forward:
        def run(packed: torch.Tensor, spans: Sequence[Span]) -> Sequence[torch.Tensor]:
            self.stages[stage].spend(slow * (0.004 + 0.0003 * len(packed)))
            return torch.split(packed, [span.count for span in spans])

        return run

    async def _session(self, key: bytes) -> None:
        span = Span(KVCache(_SHAPE, 0), 0, 1)
        while True:
            for stage, run in zip(self.stages, self._passes, strict=True):
                owner = Owner(key, key)
                await stage.run(Work(owner, run, span, lambda: torch.zeros(1, 1), lambda _: None))
                await asyncio.sleep(self._travel_s * self._draw.uniform(1, 1.3))

    async def busy(self, seconds: float) -> list[float]:
        """The share of the time in which each stage computes, once it goes steadily."""
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            for stage in self.stages:
                await stack.enter_async_context(stage)
            going = [loop.create_task(self._session(key)) for key in SESSIONS]
            await asyncio.sleep(seconds)
            before = [stage.stats.busy_s for stage in self.stages]
            await asyncio.sleep(seconds)
            after = [stage.stats.busy_s for stage in self.stages]
            for session in going:
                session.cancel()
        return [(now - then) / seconds for then, now in zip(before, after, strict=True)]


@pytest.mark.parametrize("travel_s", [0.0, 0.001])
@pytest.mark.parametrize("slowness", [(1, 1), (1, 1, 1), (1, 2)], ids=str)
def test_the_slowest_stage_of_a_chain_is_hardly_ever_idle(
    slowness: Sequence[float], travel_s: float
) -> None:
    world, found = World(Trace()), list[float]()

    async def main() -> None:
        found.extend(await Chain(slowness, travel_s).busy(0.3))

    Process(world, "chain").start(main())
    world.run(until=1.0)
    assert not world.faults
    assert max(found) > 0.85
