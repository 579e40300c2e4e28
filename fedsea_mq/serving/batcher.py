"""Batch the work of many sessions into steps on one compute thread.

The trunk's work runs through its blocks, a client's through its head or its tail; each kind of work
names its forward pass, and all work of one kind in a step shares one pass. The event loop never
computes, and the thread never waits for the loop while there is work: it plans its own steps, and
hands results over as each pass ends.

Beside steps it runs work in slices, training's: at once where no step is ready, else in turns.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from fedsea_mq.errors import Busy, DeadlineExceeded, NotRunning
from fedsea_mq.serving.arrivals import Arrivals
from fedsea_mq.serving.micro_batches import MicroBatches
from fedsea_mq.serving.passes import by_forward, compute, run_slice
from fedsea_mq.serving.scheduler import Scheduler, Share, StepLimits
from fedsea_mq.serving.step_cost import StepCost
from fedsea_mq.serving.turns import Turns
from fedsea_mq.serving.watchdog import Watchdog
from fedsea_mq.serving.work import SlicedWork, Work

R = TypeVar("R")

# Long work may make a step this much longer than the short work in it takes, if no more want it.
_LONG_BESIDE_SHORT: Final = 0.5
# A micro-batch waits for further sessions no longer than this part of what it takes to compute.
_WAIT_OF_MICRO_BATCH: Final = 0.1
# No chunk of long work is smaller: each costs its session a whole step.
_MIN_CHUNK: Final = 16


@dataclass(slots=True)
class StepStats:
    """Running totals of a batcher, for status and reports."""

    steps: int = 0
    sessions: int = 0
    positions: int = 0
    busy_s: float = 0.0
    waited_s: float = 0.0
    """How long work was held back for sessions that were on their way."""


@dataclass(frozen=True, slots=True)
class StepTaken:
    """One step, for whoever watches: how long it computed, and what.

    `sessions` shared it; `waits_s` is how long each of those had waited that began with it.
    """

    seconds: float
    positions: int
    sessions: int
    waits_s: Sequence[float]


def _unwatched(_: StepTaken) -> None:
    return None


class Batcher:
    """Runs work in steps; use it with `async with`, submit with `run`.

    It occupies the executor's thread while it runs. `max_wait_s` bounds how long a step waits for
    sessions that are on their way; it never waits longer than a step's fixed cost. A step or slice
    that takes longer than `patience_s` is stuck (see `watch`), and leaving raises `StepStuck` if it
    is found so only then. Of the sessions that come round, a step takes one in `depth`. `clock`
    tells the time, in seconds. `on_step` is told of each step, on the compute thread.
    """

    def __init__(
        self,
        executor: Executor,
        limits: StepLimits,
        *,
        max_wait_s: float = 0.01,
        patience_s: float = math.inf,
        depth: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._executor = executor
        self._limits = limits
        self._max_wait_s = max_wait_s
        self._clock = clock
        # Guards all that follows; notified when the thread may have something new to do.
        self._changed = threading.Condition()
        self._scheduler: Scheduler[Work[Any]] = Scheduler(limits)
        self._arrivals = Arrivals()
        self._micro_batches = MicroBatches(depth)
        self._sliced: deque[SlicedWork[Any]] = deque()
        self._turns = Turns()
        self._stopping = False
        # Since when a step could have started.
        self._ready_since: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread_done: asyncio.Future[None] | None = None
        self._computing: Sequence[Share[Work[Any]]] = ()
        self._cost = StepCost()
        self._watchdog = Watchdog(patience_s, clock)
        self.stats = StepStats()
        self.on_step: Callable[[StepTaken], None] = _unwatched

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._thread_done = self._loop.run_in_executor(self._executor, self._run_steps)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if not self.is_stuck:
            await self._thread_ends()
            assert self._thread_done is not None
            self._thread_done.exception()  # seen: what ended the thread is for `watch` to raise

    @property
    def waiting(self) -> int:
        """Pieces of work that are queued, in steps and in slices."""
        return len(self._scheduler) + len(self._sliced)

    @property
    def is_stuck(self) -> bool:
        """Whether the thread was found not to come back; nothing can be done with it any more."""
        return self._watchdog.is_stuck

    async def watch(self) -> None:
        """Return when the compute thread stops.

        Raises:
            StepStuck: a step or slice takes too long; leaving the batcher does not wait for it.
            BaseException: what ended the thread, if it was not asked to stop.
        """
        await self._thread_ends()
        assert self._thread_done is not None
        self._thread_done.result()

    async def _thread_ends(self) -> None:
        """Wait for it. Raises `StepStuck` rather than wait for ever."""
        assert self._thread_done is not None
        while not self._thread_done.done():
            await asyncio.wait([self._thread_done], timeout=self._watchdog.look_after_s)
            self._watchdog.look()

    async def run(self, work: Work[R]) -> R:
        """Queue `work` and wait for its result.

        Raises:
            NotRunning: the batcher was not entered, or was left.
            Busy: as much work waits as may.
            DeadlineExceeded: the work's deadline passed before its last step.
            Exception: whatever `inputs`, the forward pass or `finish` raised.
        """
        result: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        work.settle = partial(_resolve, result)
        self.submit(work)
        try:
            return await result
        except asyncio.CancelledError:
            with self._changed:
                self._scheduler.discard(work)
            raise

    def submit(self, work: Work[R]) -> None:
        """Queue `work`, which says itself what is done with its result.

        Raises:
            NotRunning: the batcher was not entered, or was left.
            Busy: as much work waits as may.
        """
        with self._changed:
            if self._loop is None or self._stopping:
                raise NotRunning("the compute loop is not running")
            now = work.queued_at = self._clock()
            was_idle = not len(self._scheduler)
            self._scheduler.add(work, now)
            self._arrivals.arrived(work.owner.session, now)
            # While a step is held back for others, only the last of them wakes the thread.
            if was_idle or not self._arrivals.any_on_the_way:
                self._changed.notify()

    def submit_slices(self, work: SlicedWork[Any]) -> None:
        """Queue work that runs in slices, after all such work that was queued before.

        Raises:
            NotRunning: the batcher was not entered, or was left.
            Busy: as much work waits as may.
        """
        with self._changed:
            if self._loop is None or self._stopping:
                raise NotRunning("the compute loop is not running")
            if len(self._sliced) >= self._limits.max_waiting:
                raise Busy("as much work waits as may", self._limits.retry_after_s)
            self._sliced.append(work)
            self._changed.notify()

    def session_left(self, session: bytes) -> None:
        """Expect nothing more of a session; its work that waits fails with `NotRunning`."""
        with self._changed:
            self._arrivals.left(session)
            waiting = self._scheduler.remove_session(session)
            self._changed.notify()
        gone = NotRunning("the session ended")
        _settle_all([(work, gone) for work in waiting])

    # Below: the compute thread.

    def _run_steps(self) -> None:
        try:
            self._run_until_stopped()
        finally:
            self._stop()

    def _stop(self) -> None:
        """Whatever ended the thread, nobody waits for it in vain."""
        with self._changed:
            self._stopping = True
            waiting = self._scheduler.remove(lambda _: True)
            sliced, self._sliced = list(self._sliced), deque()
        begun = [share.work for share in self._computing]
        stopped = NotRunning("the compute loop was stopped")
        self._tell(_settle_all, [(work, stopped) for work in (*begun, *waiting, *sliced)])

    def _run_until_stopped(self) -> None:
        while (turn := self._next_turn()) is not None:
            with self._watchdog.working():
                if isinstance(turn, SlicedWork):
                    self._run_slice(turn)
                else:
                    self._run_step(turn)

    def _run_step(self, step: list[Share[Work[Any]]]) -> None:
        self._computing, started = step, self._clock()
        *passes, last = by_forward(step)
        for shares in passes:
            self._hand_over(shares, compute(shares))
        outcomes = compute(last)
        seconds = self._clock() - started
        self._account(step, started, seconds)
        self._turns.step_took(seconds)
        self._hand_over(last, outcomes)
        self._computing = ()

    def _run_slice(self, work: SlicedWork[Any]) -> None:
        started = self._clock()
        ended, outcome = run_slice(work)
        seconds = self._clock() - started
        self._turns.slice_took(seconds)
        self.stats.busy_s += seconds
        if ended:
            with self._changed:
                self._sliced.popleft()
            self._tell(_settle_all, [(work, outcome)])

    def _next_turn(self) -> list[Share[Work[Any]]] | SlicedWork[Any] | None:
        """Wait for the next step or slice to start; None to stop."""
        with self._changed:
            while not self._stopping:
                now = self._clock()
                turn = self._turn_at(now)
                if not isinstance(turn, float):
                    return turn
                self._changed.wait(None if turn == math.inf else turn - now)
            return None

    def _turn_at(self, now: float) -> list[Share[Work[Any]]] | SlicedWork[Any] | float:
        """The step or slice to start now, or until when to wait; infinity for until told."""
        self._expire(now)
        step_ready = len(self._scheduler) > 0
        if self._sliced and self._turns.slice_may_run(step_ready=step_ready):
            return self._sliced[0]
        if not step_ready:
            self._ready_since = None
            return math.inf
        since = self._ready_since = now if self._ready_since is None else self._ready_since
        most = self._micro_batches.most(self._scheduler.sessions)
        until = self._hold_until(now, since, most)
        if until is not None:
            return until
        self._ready_since = None
        self.stats.waited_s += now - since
        step = self._scheduler.plan(now, self._long_beside, most)
        self._micro_batches.took([share.work.owner.session for share in step])
        return step

    def _hold_until(self, now: float, ready_since: float, most: int | None) -> float | None:
        """Until when to wait for sessions on their way; None to start now.

        A step of the `most` sessions that it may have gains nothing by waiting.
        """
        if most is not None and len(self._scheduler.sessions) >= most:
            return None
        latest = ready_since + min(self._worth_s(most), self._max_wait_s)
        return None if now >= latest else self._arrivals.worth_waiting_until(now, latest)

    def _worth_s(self, most: int | None) -> float:
        """How long a wait for further sessions may be.

        It costs what waits and gains a step's fixed cost, so it is never longer than that. Where a
        round is divided into steps it gains less: who comes later shares the next one.
        """
        if most is None:
            return self._cost.fixed_s
        return _WAIT_OF_MICRO_BATCH * (self._cost.fixed_s + most * self._cost.each_s)

    def _long_beside(self, short: int, crowding: float) -> int:
        """Positions of long work that may join `short` positions of short work.

        It is wanted `crowding` times as much: where more wait for prompts than for answers, it is
        the prompts that must not be kept long.
        """
        alone_s = self._cost.fixed_s + short * self._cost.each_s
        share = _LONG_BESIDE_SHORT * crowding
        return max(_MIN_CHUNK, self._cost.positions_within(share * alone_s, 1 << 20))

    def _expire(self, now: float) -> None:
        late = DeadlineExceeded("the deadline passed before the work was done")
        for work in self._scheduler.expire(now):
            self._tell(_settle_all, [(work, late)])

    def _hand_over(self, shares: Sequence[Share[Work[Any]]], outcomes: Sequence[Any]) -> None:
        done = [
            (share.work, outcome)
            for share, outcome in zip(shares, outcomes, strict=True)
            if share.completes or isinstance(outcome, Exception)
        ]
        with self._changed:
            now = self._clock()
            for work, outcome in done:
                self._arrivals.answered(work.owner.session, work.forward, now)
                if isinstance(outcome, Exception):
                    # Later chunks of it would build on what was not computed.
                    self._scheduler.discard(work)
        self._tell(_settle_all, done)

    def _tell(self, call: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(call, *arguments)

    def _account(self, step: Sequence[Share[Work[Any]]], started: float, seconds: float) -> None:
        positions = sum(share.count for share in step)
        self._cost.observe(positions, seconds)
        self.stats.steps += 1
        self.stats.sessions += len(step)
        self.stats.positions += positions
        self.stats.busy_s += seconds
        waits_s = [started - share.work.queued_at for share in step if not share.start]
        self.on_step(StepTaken(seconds, positions, len(step), waits_s))


def _settle_all(done: Sequence[tuple[Work[Any] | SlicedWork[Any], Any]]) -> None:
    """Hand every outcome to whom it concerns; what one of them makes of it is its own affair."""
    loop = asyncio.get_running_loop()
    for work, outcome in done:
        assert work.settle is not None
        loop.call_soon(work.settle, outcome)


def _resolve(result: asyncio.Future[R], outcome: R | Exception) -> None:
    if result.done():
        return  # whoever waited gave up
    if isinstance(outcome, Exception):
        result.set_exception(outcome)
    else:
        result.set_result(outcome)
