"""Virtual time, and processes that are killed and frozen in it."""

from __future__ import annotations

import asyncio

import pytest

from fedsea_mq.simulation.trace import Trace
from fedsea_mq.simulation.world import Process, World


@pytest.fixture
def world() -> World:
    return World(Trace())


def process(world: World, name: str = "one") -> Process:
    return Process(world, name)


def test_an_hour_passes_at_once_and_in_order(world: World) -> None:
    seen: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((name, asyncio.get_running_loop().time()))

    for name, seconds in (("late", 3600.0), ("soon", 0.5)):
        process(world, name).start(sleeper(name, seconds))
    world.run(7200.0)
    assert seen == [("soon", 0.5), ("late", 3600.0)]
    assert world.now == 7200.0


def test_a_killed_process_does_nothing_more_and_leaves_nothing_behind(world: World) -> None:
    seen: list[str] = []
    one = process(world)

    async def main() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(100))
                await asyncio.sleep(100)
            seen.append("went on")
        finally:
            await asyncio.sleep(0)  # cleaning up may wait for others of its tasks

    one.start(main())
    world.at(1.0, one.kill)
    world.run(1000.0)
    assert seen == []
    assert not one.alive
    assert world.faults == []
    assert all(task.done() for task in one._tasks)


def test_a_frozen_process_goes_on_where_it_was(world: World) -> None:
    seen: list[float] = []
    one = process(world)

    async def main() -> None:
        for _ in range(3):
            await asyncio.sleep(1.0)
            seen.append(asyncio.get_running_loop().time())

    one.start(main())
    world.at(1.5, one.freeze, 10.0)
    world.run(100.0)
    assert seen == [1.0, 11.5, 12.5]


def test_an_exception_that_nobody_handles_is_a_fault(world: World) -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(int, "no number")
        await asyncio.sleep(1)
        raise ArithmeticError("unlucky")

    process(world).start(main())
    world.run(10.0)
    assert len(world.faults) == 2
    assert "ValueError" in world.faults[0]
    assert "unlucky" in world.faults[1]
