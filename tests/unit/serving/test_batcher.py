"""Work of many sessions shares steps; what goes wrong in one stays with it."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest
import torch

from fedsea_mq.errors import DeadlineExceeded, NotRunning, RankLost, StepStuck
from fedsea_mq.model.attention import Span
from fedsea_mq.model.kv_cache import KVCache, KVShape
from fedsea_mq.serving.batcher import Batcher
from fedsea_mq.serving.compute_thread import compute_thread
from fedsea_mq.serving.scheduler import Owner, StepLimits
from fedsea_mq.serving.work import Forward, SlicedWork, Work

_SHAPE = KVShape(range(0), 1, 1, torch.float32, "cpu")
_SESSIONS = count()


def spans_of(packed: torch.Tensor, spans: Sequence[Span]) -> Sequence[torch.Tensor]:
    return torch.split(packed, [span.count for span in spans])


class Blocks:
    """A forward pass that doubles its input, remembers its steps, and can be held."""

    def __init__(self) -> None:
        self.steps: list[list[int]] = []
        self.starts: list[list[int]] = []
        self.adapters: list[list[str | None]] = []
        self.threads: set[str] = set()
        self.open = threading.Event()
        self.open.set()
        self.seconds = 0.0

    def __call__(self, packed: torch.Tensor, spans: Sequence[Span]) -> Sequence[torch.Tensor]:
        self.steps.append([span.count for span in spans])
        self.starts.append([span.start for span in spans])
        self.adapters.append([span.adapter for span in spans])
        self.threads.add(threading.current_thread().name)
        time.sleep(self.seconds)
        assert self.open.wait(10)
        if (packed == 13).any():
            raise ArithmeticError("unlucky")
        return spans_of(2 * packed, spans)

    def work(
        self,
        value: float,
        count: int = 1,
        *,
        session: bytes | None = None,
        adapter: str | None = None,
        inputs: Callable[[], torch.Tensor] | None = None,
        finish: Callable[[Sequence[torch.Tensor]], Any] = lambda outputs: [
            value for output in outputs for value in output[:, 0].tolist()
        ],
        deadline: float = math.inf,
    ) -> Work[Any]:
        owner = Owner(b"client", session or b"session %d" % next(_SESSIONS))
        span = Span(KVCache(_SHAPE, 0), 0, count, adapter=adapter)
        full = inputs or (lambda: torch.full((count, 1), value))
        return Work(owner, self, span, full, finish, deadline)


class _Fatal(BaseException):
    """What no session's fault handling catches."""


def _exhausted(packed: torch.Tensor, spans: Sequence[Span]) -> Sequence[torch.Tensor]:
    raise _Fatal


def _parted(packed: torch.Tensor, spans: Sequence[Span]) -> Sequence[torch.Tensor]:
    raise RankLost("rank 1")


@pytest.fixture
def blocks() -> Blocks:
    return Blocks()


@pytest.fixture
async def batcher(blocks: Blocks) -> AsyncIterator[Batcher]:
    async with (
        compute_thread("test compute") as executor,
        Batcher(executor, StepLimits(8)) as batcher,
    ):
        yield batcher
        blocks.open.set()


async def first_step_runs(blocks: Blocks, batcher: Batcher) -> asyncio.Task[Any]:
    """A step that is being computed, and will be until the blocks are opened."""
    blocks.open.clear()
    before = len(blocks.steps)
    task = asyncio.create_task(batcher.run(blocks.work(1)))
    while len(blocks.steps) == before:
        await asyncio.sleep(0)
    return task


async def test_one_piece_of_work_comes_back_computed_on_the_thread(
    blocks: Blocks, batcher: Batcher
) -> None:
    assert await batcher.run(blocks.work(3, count=2)) == [6.0, 6.0]
    assert all(name.startswith("test compute") for name in blocks.threads)


async def test_what_waits_while_a_step_runs_shares_the_next(
    blocks: Blocks, batcher: Batcher
) -> None:
    first = await first_step_runs(blocks, batcher)
    others = [asyncio.create_task(batcher.run(blocks.work(n))) for n in (2, 3, 4)]
    await asyncio.sleep(0)
    blocks.open.set()
    assert await asyncio.gather(first, *others) == [[2.0], [4.0], [6.0], [8.0]]
    assert blocks.steps == [[1], [1, 1, 1]]


async def test_sessions_of_one_adapter_lie_together_in_a_step_and_get_what_is_theirs(
    blocks: Blocks, batcher: Batcher
) -> None:
    first = await first_step_runs(blocks, batcher)
    names = ["short", None, "formal", "short", None, "formal"]
    work = [blocks.work(n, adapter=name) for n, name in enumerate(names)]
    others = [asyncio.create_task(batcher.run(one)) for one in work]
    await asyncio.sleep(0)
    blocks.open.set()
    assert await asyncio.gather(first, *others) == [[2.0], *([2.0 * n] for n in range(6))]
    assert blocks.adapters[-1] == [None, None, "formal", "formal", "short", "short"]


async def test_every_chunk_of_long_work_has_its_adapter(blocks: Blocks, batcher: Batcher) -> None:
    await batcher.run(blocks.work(1, 20, adapter="formal"))
    assert len(blocks.adapters) > 1
    assert all(step == ["formal"] for step in blocks.adapters)


async def test_a_step_stays_within_its_budget_and_what_is_longer_comes_in_chunks(
    blocks: Blocks, batcher: Batcher
) -> None:
    first = await first_step_runs(blocks, batcher)
    others = [asyncio.create_task(batcher.run(blocks.work(n, n))) for n in (5, 3, 20)]
    await asyncio.sleep(0)
    blocks.open.set()
    results = await asyncio.gather(first, *others)
    assert [len(result) for result in results] == [1, 5, 3, 20]
    assert all(sum(step) <= 8 for step in blocks.steps)
    assert sum(sum(step) for step in blocks.steps) == 29


async def test_chunks_start_where_the_one_before_ended(blocks: Blocks, batcher: Batcher) -> None:
    ramp = torch.arange(20.0, 40.0)[:, None]
    doubled = [2.0 * n for n in range(20, 40)]
    assert await batcher.run(blocks.work(0, 20, inputs=lambda: ramp)) == doubled
    assert (blocks.steps, blocks.starts) == ([[8], [8], [4]], [[0], [8], [16]])


async def test_a_fault_in_a_chunk_ends_the_work_and_nothing_of_it_runs_after(
    blocks: Blocks, batcher: Batcher
) -> None:
    ramp = torch.arange(40.0)[:, None]
    with pytest.raises(ArithmeticError):
        await batcher.run(blocks.work(0, 40, inputs=lambda: ramp))
    assert await batcher.run(blocks.work(4)) == [8.0]
    assert blocks.starts == [[0], [8], [0]]


async def test_work_past_its_deadline_is_refused_and_not_computed(
    blocks: Blocks, batcher: Batcher
) -> None:
    first = await first_step_runs(blocks, batcher)
    late = asyncio.create_task(batcher.run(blocks.work(2, deadline=time.monotonic())))
    fine = asyncio.create_task(batcher.run(blocks.work(3, deadline=time.monotonic() + 60)))
    await asyncio.sleep(0.01)
    blocks.open.set()
    with pytest.raises(DeadlineExceeded):
        await late
    assert await asyncio.gather(first, fine) == [[2.0], [6.0]]
    assert blocks.steps == [[1], [1]]


async def test_sessions_on_their_way_are_waited_for_and_share_the_step(
    blocks: Blocks, batcher: Batcher
) -> None:
    """Two sessions that begin out of step fall into step, and stay there."""
    blocks.seconds = 0.02

    async def decode(session: bytes, think_s: float) -> None:
        for _ in range(20):
            await batcher.run(blocks.work(1, session=session))
            await asyncio.sleep(think_s)

    async with asyncio.TaskGroup() as group:
        group.create_task(decode(b"a", 0.002))
        await asyncio.sleep(0.01)
        group.create_task(decode(b"b", 0.003))
    together = [len(step) == 2 for step in blocks.steps[5:-3]]
    assert sum(together) >= 0.8 * len(together)
    assert batcher.stats.waited_s < 0.5 * batcher.stats.busy_s


async def test_a_session_that_stays_away_is_not_waited_for_for_long(
    blocks: Blocks, batcher: Batcher
) -> None:
    blocks.seconds = 0.01
    for _ in range(10):
        await asyncio.gather(
            *(batcher.run(blocks.work(1, session=session)) for session in (b"a", b"b"))
        )
    waited = batcher.stats.waited_s
    for _ in range(10):  # b is silent now
        await batcher.run(blocks.work(1, session=b"a"))
    assert batcher.stats.waited_s - waited < 0.02


async def test_totals_say_what_was_computed(blocks: Blocks, batcher: Batcher) -> None:
    first = await first_step_runs(blocks, batcher)
    others = [asyncio.create_task(batcher.run(blocks.work(n, 2))) for n in (2, 3)]
    await asyncio.sleep(0)
    blocks.open.set()
    await asyncio.gather(first, *others)
    stats = batcher.stats
    assert (stats.steps, stats.sessions, stats.positions) == (2, 3, 5)
    assert stats.busy_s > 0


def fault(*_: object) -> Any:
    raise KeyError("this session's fault")


def ran_out(*_: object) -> Any:
    return next(iter(()))


async def test_a_fault_that_no_future_takes_strands_nobody(
    blocks: Blocks, batcher: Batcher
) -> None:
    first = await first_step_runs(blocks, batcher)
    bad = asyncio.create_task(batcher.run(blocks.work(9, finish=ran_out)))
    sound = asyncio.create_task(batcher.run(blocks.work(2)))
    await asyncio.sleep(0)
    blocks.open.set()
    async with asyncio.timeout(10):
        assert await asyncio.gather(first, sound) == [[2.0], [4.0]]
        with pytest.raises(RuntimeError, match="StopIteration"):
            await bad


@pytest.mark.parametrize("faulty", [{"inputs": fault}, {"finish": fault}])
async def test_a_fault_in_one_work_leaves_the_others_of_its_step_alone(
    blocks: Blocks, batcher: Batcher, faulty: dict[str, Any]
) -> None:
    first = await first_step_runs(blocks, batcher)
    sound = [asyncio.create_task(batcher.run(blocks.work(n))) for n in (2, 3)]
    bad = asyncio.create_task(batcher.run(blocks.work(9, **faulty)))
    late = asyncio.create_task(batcher.run(blocks.work(4)))
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
    together = [asyncio.create_task(batcher.run(blocks.work(n))) for n in (2, 13)]
    await asyncio.sleep(0)
    blocks.open.set()
    await first
    outcomes = await asyncio.gather(*together, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ArithmeticError, ArithmeticError]
    assert await batcher.run(blocks.work(2)) == [4.0]


async def test_work_of_a_caller_that_gave_up_is_dropped(blocks: Blocks, batcher: Batcher) -> None:
    first = await first_step_runs(blocks, batcher)
    gone = asyncio.create_task(batcher.run(blocks.work(2)))
    stays = asyncio.create_task(batcher.run(blocks.work(3)))
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
    assert await batcher.run(blocks.work(5)) == [10.0]


async def test_leaving_ends_the_step_that_runs_and_fails_what_waits(blocks: Blocks) -> None:
    async with compute_thread("test compute") as executor:
        async with Batcher(executor, StepLimits(8)) as batcher:
            running = await first_step_runs(blocks, batcher)
            waiting = asyncio.create_task(batcher.run(blocks.work(2)))
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_later(0.05, blocks.open.set)
        assert await running == [2.0]
        with pytest.raises(NotRunning):
            await waiting
        with pytest.raises(NotRunning):
            await batcher.run(blocks.work(3))
    assert len(blocks.steps) == 1


@pytest.mark.parametrize(("forward", "error"), [(_exhausted, _Fatal), (_parted, RankLost)])
async def test_a_thread_that_dies_strands_nobody_and_says_so(
    blocks: Blocks, forward: Forward, error: type[BaseException]
) -> None:
    async with (
        compute_thread("test compute") as executor,
        Batcher(executor, StepLimits(8)) as batcher,
    ):
        watched = asyncio.create_task(batcher.watch())
        deadly = blocks.work(1)
        deadly.forward = forward
        with pytest.raises(NotRunning):
            await batcher.run(deadly)
        with pytest.raises(error):
            await watched
        with pytest.raises(NotRunning):
            await batcher.run(blocks.work(2))


async def test_a_step_that_does_not_come_back_is_told_and_not_waited_for(blocks: Blocks) -> None:
    stuck = False
    async with compute_thread("test compute", lambda: stuck) as executor:
        async with Batcher(executor, StepLimits(8), patience_s=0.2) as batcher:
            assert await batcher.run(blocks.work(1)) == [2.0]
            running = await first_step_runs(blocks, batcher)
            with pytest.raises(StepStuck):
                await batcher.watch()
            stuck = batcher.is_stuck
        assert stuck
        running.cancel()
    blocks.open.set()  # so that the thread ends


async def test_leaving_does_not_wait_for_a_step_that_is_only_then_found_stuck(
    blocks: Blocks,
) -> None:
    """A node that is told to stop looks no more by itself, and would wait for ever."""
    try:
        batcher = Batcher(ThreadPoolExecutor(1), StepLimits(8), patience_s=0.2)
        await batcher.__aenter__()
        running = await first_step_runs(blocks, batcher)
        with pytest.raises(StepStuck):
            await asyncio.wait_for(batcher.__aexit__(None, None, None), 20)
        assert batcher.is_stuck
        running.cancel()
    finally:
        blocks.open.set()  # so that the thread ends


async def test_a_thread_that_only_has_nothing_to_do_is_not_stuck(blocks: Blocks) -> None:
    async with (
        compute_thread("test compute") as executor,
        Batcher(executor, StepLimits(8), patience_s=0.05) as batcher,
    ):
        watched = asyncio.create_task(batcher.watch())
        for _ in range(4):
            await batcher.run(blocks.work(1))
            await asyncio.sleep(0.06)
        assert not watched.done()
        watched.cancel()


async def test_work_before_entering_is_refused(blocks: Blocks) -> None:
    async with compute_thread("test compute") as executor:
        with pytest.raises(NotRunning):
            await Batcher(executor, StepLimits(8)).run(blocks.work(1))


async def test_work_of_two_kinds_shares_a_step_but_no_pass(batcher: Batcher) -> None:
    heads, tails = Blocks(), Blocks()
    first = await first_step_runs(heads, batcher)
    works = [heads.work(1), tails.work(2), heads.work(3), tails.work(4)]
    others = [asyncio.create_task(batcher.run(work)) for work in works]
    await asyncio.sleep(0)
    heads.open.set()
    assert await asyncio.gather(first, *others) == [[2.0], [2.0], [4.0], [6.0], [8.0]]
    assert (heads.steps, tails.steps) == ([[1], [1, 1]], [[1, 1]])
    assert batcher.stats.steps == 2


async def test_a_session_that_leaves_takes_its_waiting_work_along(
    blocks: Blocks, batcher: Batcher
) -> None:
    first = await first_step_runs(blocks, batcher)
    gone = asyncio.create_task(batcher.run(blocks.work(2, session=b"gone")))
    stays = asyncio.create_task(batcher.run(blocks.work(3)))
    await asyncio.sleep(0)
    batcher.session_left(b"gone")
    blocks.open.set()
    with pytest.raises(NotRunning):
        await gone
    assert await asyncio.gather(first, stays) == [[2.0], [6.0]]
    assert blocks.steps == [[1], [1]]


async def test_prompts_that_wait_in_numbers_are_not_kept_waiting_by_a_few_answers(
    batcher: Batcher,
) -> None:
    for positions in (10, 100, 1000):
        batcher._cost.observe(positions, 0.1 + positions * 0.001)
    beside_many = batcher._long_beside(16, 1)
    assert 40 <= beside_many <= 60  # a step takes half as long again
    assert batcher._long_beside(16, 4) == pytest.approx(4 * beside_many, rel=0.1)


class Timeline:
    """A clock that work moves, and the order in which it did."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def pass_by(self, name: str, seconds: float) -> None:
        self.order.append(name)
        self.now += seconds


def in_slices(
    timeline: Timeline, name: str, seconds: float, count: int
) -> Generator[None, None, bool]:
    """`count` slices; whether gradients could pass in all of them."""
    differentiable = True
    for _ in range(count):
        timeline.pass_by(name, seconds)
        differentiable &= torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        yield
    return differentiable


async def sliced(batcher: Batcher, slices: Generator[None, None, Any]) -> Any:
    result = asyncio.get_running_loop().create_future()

    def settle(outcome: Any) -> None:
        if isinstance(outcome, Exception):
            result.set_exception(outcome)
        else:
            result.set_result(outcome)

    batcher.submit_slices(SlicedWork(slices, settle))
    return await result


@pytest.mark.parametrize(
    ("slice_s", "expected"),
    [(1.0, "tstststs"), (4.0, "tssss"), (0.25, "ttttstttts")],
    ids=["as long as a step", "longer", "shorter"],
)
async def test_slices_and_steps_take_turns(blocks: Blocks, slice_s: float, expected: str) -> None:
    # Given a thread that is held while both kinds of work come.
    timeline = Timeline()
    held = threading.Event()

    def forward(packed: torch.Tensor, spans: Sequence[Span]) -> Sequence[torch.Tensor]:
        timeline.pass_by("s", 1.0)
        assert held.wait(10)
        return spans_of(packed, spans)

    def step() -> Work[Any]:
        work = blocks.work(1)
        work.forward = forward
        return work

    async with (
        compute_thread("test compute") as executor,
        Batcher(executor, StepLimits(1), max_wait_s=0, clock=timeline) as batcher,
    ):
        first = asyncio.create_task(batcher.run(step()))
        while not timeline.order:
            await asyncio.sleep(0)
        steps = [asyncio.create_task(batcher.run(step())) for _ in range(8)]
        training = asyncio.create_task(sliced(batcher, in_slices(timeline, "t", slice_s, 12)))
        await asyncio.sleep(0)
        # When it is let go, then nobody waits for longer than the other's turn takes.
        held.set()
        await asyncio.gather(first, *steps)
        assert await training  # and steps' inference mode is not that of slices
    order = "".join(timeline.order)
    assert order.startswith("s" + expected)
    assert (order.count("s"), order.count("t")) == (9, 12)


async def test_sliced_works_follow_each_other_and_a_fault_ends_only_its_own(
    batcher: Batcher,
) -> None:
    timeline = Timeline()

    def faulty() -> Generator[None, None, None]:
        timeline.pass_by("x", 0.0)
        yield
        raise ArithmeticError("unlucky")

    results = await asyncio.gather(
        sliced(batcher, in_slices(timeline, "a", 0.0, 3)),
        sliced(batcher, faulty()),
        sliced(batcher, in_slices(timeline, "b", 0.0, 2)),
        return_exceptions=True,
    )
    assert "".join(timeline.order) == "aaaxbb"
    assert [type(result) for result in results] == [bool, ArithmeticError, bool]


async def test_leaving_fails_work_in_slices_that_is_not_done(blocks: Blocks) -> None:
    async with compute_thread("test compute") as executor:
        async with Batcher(executor, StepLimits(8)) as batcher:
            running = await first_step_runs(blocks, batcher)
            waits = asyncio.create_task(sliced(batcher, in_slices(Timeline(), "t", 0.0, 2)))
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_later(0.05, blocks.open.set)
        assert await running == [2.0]
        with pytest.raises(NotRunning):
            await waits
