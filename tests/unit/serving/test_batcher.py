"""Work of many sessions shares steps; what goes wrong in one stays with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
import torch

from fedsea_mq.errors import NotRunning
from fedsea_mq.model.attention import Span
from fedsea_mq.model.kv_cache import KVCache, KVShape
from fedsea_mq.serving.batcher import Batcher, Work
from fedsea_mq.serving.compute_thread import compute_thread

_SHAPE = KVShape(range(0), 1, 1, torch.float32, "cpu")


def spans_of(packed: torch.Tensor, spans: Sequence[Span]) -> Sequence[torch.Tensor]:
    return torch.split(packed, [span.count for span in spans])


class Blocks:
    """A forward pass that doubles its input, remembers its steps, and can be held."""

    def __init__(self) -> None:
        self.steps: list[list[int]] = []
        self.threads: set[str] = set()
        self.open = threading.Event()
        self.open.set()

    def __call__(self, packed: torch.Tensor, spans: Sequence[Span]) -> Sequence[torch.Tensor]:
        self.steps.append([span.count for span in spans])
        self.threads.add(threading.current_thread().name)
        assert self.open.wait(10)
        if (packed == 13).any():
            raise ArithmeticError("unlucky")
        return spans_of(2 * packed, spans)


def work(
    value: float,
    count: int = 1,
    *,
    inputs: Callable[[], torch.Tensor] | None = None,
    finish: Callable[[torch.Tensor], Any] = lambda output: output[:, 0].tolist(),
) -> Work[Any]:
    span = Span(KVCache(_SHAPE, 0), 0, count)
    return Work(span, inputs or (lambda: torch.full((count, 1), value)), finish)


@pytest.fixture
def blocks() -> Blocks:
    return Blocks()


@pytest.fixture
async def batcher(blocks: Blocks) -> AsyncIterator[Batcher]:
    async with compute_thread("test compute") as executor, Batcher(blocks, executor, 8) as batcher:
        yield batcher
        blocks.open.set()


async def first_step_runs(blocks: Blocks, batcher: Batcher) -> asyncio.Task[Any]:
    """A step that is being computed, and will be until the blocks are opened."""
    blocks.open.clear()
    task = asyncio.create_task(batcher.run(work(1)))
    while not blocks.steps:
        await asyncio.sleep(0)
    return task


async def test_one_piece_of_work_comes_back_computed_on_the_thread(
    blocks: Blocks, batcher: Batcher
) -> None:
    assert await batcher.run(work(3, count=2)) == [6.0, 6.0]
    assert all(name.startswith("test compute") for name in blocks.threads)


async def test_what_waits_while_a_step_runs_shares_the_next(
    blocks: Blocks, batcher: Batcher
) -> None:
    first = await first_step_runs(blocks, batcher)
    others = [asyncio.create_task(batcher.run(work(n))) for n in (2, 3, 4)]
    await asyncio.sleep(0)
    blocks.open.set()
    assert await asyncio.gather(first, *others) == [[2.0], [4.0], [6.0], [8.0]]
    assert blocks.steps == [[1], [1, 1, 1]]


async def test_a_step_stays_within_its_budget(blocks: Blocks, batcher: Batcher) -> None:
    first = await first_step_runs(blocks, batcher)
    others = [asyncio.create_task(batcher.run(work(n, n))) for n in (5, 3, 6, 9, 1)]
    await asyncio.sleep(0)
    blocks.open.set()
    results = await asyncio.gather(first, *others)
    assert [len(result) for result in results] == [1, 5, 3, 6, 9, 1]
    assert blocks.steps == [[1], [5, 3], [6], [9], [1]]


async def test_totals_say_what_was_computed(blocks: Blocks, batcher: Batcher) -> None:
    first = await first_step_runs(blocks, batcher)
    others = [asyncio.create_task(batcher.run(work(n, 2))) for n in (2, 3)]
    await asyncio.sleep(0)
    blocks.open.set()
    await asyncio.gather(first, *others)
    stats = batcher.stats
    assert (stats.steps, stats.sessions, stats.positions) == (2, 3, 5)
    assert stats.busy_s > 0


def fault(*_: object) -> Any:
    raise KeyError("this session's fault")


@pytest.mark.parametrize("faulty", [{"inputs": fault}, {"finish": fault}])
async def test_a_fault_in_one_work_leaves_the_others_of_its_step_alone(
    blocks: Blocks, batcher: Batcher, faulty: dict[str, Any]
) -> None:
    first = await first_step_runs(blocks, batcher)
    sound = [asyncio.create_task(batcher.run(work(n))) for n in (2, 3)]
    bad = asyncio.create_task(batcher.run(work(9, **faulty)))
    late = asyncio.create_task(batcher.run(work(4)))
    await asyncio.sleep(0)
    blocks.open.set()
    assert await asyncio.gather(first, *sound, late) == [[2.0], [4.0], [6.0], [8.0]]
    with pytest.raises(KeyError, match="this session's fault"):
        await bad
    assert batcher.stats.steps == 2


async def test_a_fault_in_the_forward_pass_fails_its_step_and_the_next_goes_on(
    blocks: Blocks, batcher: Batcher
) -> None:
    first = await first_step_runs(blocks, batcher)
    together = [asyncio.create_task(batcher.run(work(n))) for n in (2, 13)]
    await asyncio.sleep(0)
    blocks.open.set()
    await first
    outcomes = await asyncio.gather(*together, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ArithmeticError, ArithmeticError]
    assert await batcher.run(work(2)) == [4.0]


async def test_work_of_a_caller_that_gave_up_is_dropped(blocks: Blocks, batcher: Batcher) -> None:
    first = await first_step_runs(blocks, batcher)
    gone = asyncio.create_task(batcher.run(work(2)))
    stays = asyncio.create_task(batcher.run(work(3)))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    blocks.open.set()
    assert await asyncio.gather(first, stays) == [[2.0], [6.0]]
    assert blocks.steps == [[1], [1]]


async def test_a_caller_that_gives_up_while_its_step_runs_harms_nobody(
    blocks: Blocks, batcher: Batcher
) -> None:
    first = await first_step_runs(blocks, batcher)
    first.cancel()
    await asyncio.wait([first])
    blocks.open.set()
    assert await batcher.run(work(5)) == [10.0]


async def test_leaving_fails_what_waits_and_what_runs(blocks: Blocks) -> None:
    async with compute_thread("test compute") as executor:
        async with Batcher(blocks, executor, 8) as batcher:
            running = await first_step_runs(blocks, batcher)
            waiting = asyncio.create_task(batcher.run(work(2)))
            await asyncio.sleep(0)
        blocks.open.set()
        for task in (running, waiting):
            with pytest.raises(NotRunning):
                await task
        with pytest.raises(NotRunning):
            await batcher.run(work(3))


async def test_work_before_entering_is_refused(blocks: Blocks) -> None:
    async with compute_thread("test compute") as executor:
        with pytest.raises(NotRunning):
            await Batcher(blocks, executor, 8).run(work(1))
