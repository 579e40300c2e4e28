"""Runs a plan: starts requests when they are due, and counts what becomes of them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

from fedsea_mq.errors import Busy, FedSeaError
from fedsea_mq.load.plan import Arrivals, LoadPlan, Request
from fedsea_mq.load.tally import LATE_S, Outcome, RequestWatch, Tally
from fedsea_mq.transport.requests import Traffic
from nodes.load.job import Job

# Open-loop requests in flight at most: beyond, they are counted as unsent.
_MAX_IN_FLIGHT: Final = 4096
_LAG_CHECK_S: Final = 0.05
# After an error a closed loop waits, as a person would; else a fault becomes a flood.
_AFTER_ERROR_S: Final = 1.0


OnEnd = Callable[[Request, RequestWatch, Outcome | str], None]


def _unwatched(*_: object) -> None:
    return None


class SimulatedClient(Protocol):
    """A client that can run requests."""

    async def run(self, job: Job) -> None:
        """Run one request to its end."""
        ...


class Driver:
    """One load process's run. `tally` counts; `live_tokens` is for progress.

    `on_end` is told of each request that is over, in the window of the tally or not.
    """

    def __init__(self, plan: LoadPlan, clients: Sequence[SimulatedClient]) -> None:
        self._plan = plan
        self._clients = clients
        self._rng = random.Random(plan.seed)
        self._barrier = asyncio.Barrier(sum(plan.sessions))
        # It lets those that wait in the order in which they came, so that all take turns.
        self._turn = asyncio.Lock()
        self._begun_at = 0.0
        self._window = plan.measured
        self._jobs: set[Job] = set()
        self._ended_tokens = 0
        self._ended_traffic = Traffic()
        self.tally = Tally()
        self.on_end: OnEnd = _unwatched

    @property
    def live_tokens(self) -> int:
        """New tokens so far, of running requests too."""
        return self._ended_tokens + sum(job.watch.tokens for job in self._jobs)

    @property
    def in_flight(self) -> int:
        """Requests that run now."""
        return len(self._jobs)

    async def run(self) -> None:
        """Run the plan to its end; what was begun is let finish."""
        self._begun_at = time.monotonic()
        self._window = self._plan.measured.after(self._begun_at)
        watching = asyncio.create_task(self._watch_window())
        await asyncio.sleep(0)  # it begins before any request
        try:
            if self._plan.arrivals is Arrivals.CLOSED:
                await self._closed_loop()
            else:
                await self._open_loop()
        finally:
            watching.cancel()  # if the window is still open, it closes now
            with suppress(asyncio.CancelledError):
                await watching

    async def _watch_window(self) -> None:
        """Measure in the window what no request can: traffic, and this process's own work."""
        if self._plan.measured.from_s:
            await asyncio.sleep(self._plan.measured.from_s)
        begun_at, cpu, before = time.monotonic(), time.process_time(), self.traffic()
        late_s = 0.0
        try:
            while (now := time.monotonic()) < self._window.until_s:
                due = min(now + _LAG_CHECK_S, self._window.until_s)
                await asyncio.sleep(due - now)
                lag_s = time.monotonic() - due
                self.tally.lag.note(lag_s)
                late_s += lag_s if lag_s > LATE_S else 0.0
        finally:
            wall_s = max(1e-9, time.monotonic() - begun_at)
            self.tally.busiest_share = (time.process_time() - cpu) / wall_s
            self.tally.late_share = late_s / wall_s
            self._count(self.traffic() - before)

    def traffic(self) -> Traffic:
        """Of all requests so far."""
        return sum((job.traffic for job in self._jobs), self._ended_traffic)

    def _elapsed(self) -> float:
        return time.monotonic() - self._begun_at

    async def _closed_loop(self) -> None:
        async with asyncio.TaskGroup() as users:
            for number, sessions in enumerate(self._plan.sessions):
                for _ in range(sessions):
                    users.create_task(self._user(number))

    async def _user(self, client: int) -> None:
        once = self._plan.once or self._plan.together
        while once or self._elapsed() < self._plan.duration_s:
            if not await self._request(client, self._plan.drawn(self._rng), time.monotonic()):
                await asyncio.sleep(_AFTER_ERROR_S)
            if once:
                return

    async def _open_loop(self) -> None:
        async with asyncio.TaskGroup() as running:
            for number, request in enumerate(self._plan.requests(self._rng)):
                if request.at_s > self._plan.duration_s:
                    return
                await asyncio.sleep(max(0.0, request.at_s - self._elapsed()))
                if self.in_flight >= _MAX_IN_FLIGHT or self._elapsed() > self._plan.duration_s:
                    self.tally.unsent += request.at_s in self._plan.measured
                    continue
                due_at = self._begun_at + request.at_s
                running.create_task(self._request(number % len(self._clients), request, due_at))

    async def _request(self, client: int, request: Request, due_at: float) -> bool:
        """Run one request, whose times count from when it was due; whether it went well."""
        plan = self._plan
        fate = self._rng.random()
        vanishes = fate < plan.vanishes
        stops = not vanishes and fate < plan.vanishes + plan.stops
        if vanishes or stops:
            half = max(1, request.new_tokens // 2)
            request = request.model_copy(update={"new_tokens": half})
        name = f"{plan.seed}-{client}"
        watch = RequestWatch(name, due_at, self._window)
        job = Job(request, watch, vanishes=vanishes)
        if plan.together:
            job.gate = self._barrier.wait
        if plan.in_turn:
            job.turn = self._turn
        outcome = await self._outcome(client, job)
        if outcome is Outcome.DONE and (vanishes or stops):
            outcome = Outcome.VANISHED if vanishes else Outcome.STOPPED
        watch.end(outcome, time.monotonic(), self.tally, plan.slo)
        self.on_end(request, watch, outcome)
        return isinstance(outcome, Outcome) and outcome is not Outcome.BUSY

    async def _outcome(self, client: int, job: Job) -> Outcome | str:
        self._jobs.add(job)
        try:
            await self._clients[client].run(job)
        except asyncio.BrokenBarrierError:
            return "BrokenBarrier"
        except FedSeaError as error:
            if self._plan.together:
                await self._barrier.abort()  # the others wait for one that will not come
            if isinstance(error, Busy):
                return Outcome.BUSY
            name = type(error).__name__
            self.tally.said.setdefault(name, str(error))
            return name
        finally:
            self._jobs.discard(job)
            self._ended_tokens += job.watch.tokens
            self._ended_traffic += job.traffic
        return Outcome.DONE

    def _count(self, traffic: Traffic) -> None:
        self.tally.refusals += traffic.refusals
        self.tally.round_trips += traffic.round_trips
        self.tally.direct_trips += traffic.direct_trips
        self.tally.bytes_up += traffic.bytes_up
        self.tally.bytes_down += traffic.bytes_down
