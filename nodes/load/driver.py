"""Runs a plan: starts requests when they are due, and counts what becomes of them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Final, Protocol

from fedsea_mq.errors import Busy, FedSeaError
from fedsea_mq.load.plan import Arrivals, LoadPlan, Request
from fedsea_mq.load.tally import Outcome, RequestWatch, Tally
from nodes.load.job import Job

# Open-loop requests in flight at most: beyond, they are counted as unsent.
_MAX_IN_FLIGHT: Final = 4096
_LAG_CHECK_S: Final = 0.05
# After an error a closed loop waits, as a person would; else a fault becomes a flood.
_AFTER_ERROR_S: Final = 1.0


class SimulatedClient(Protocol):
    """A client that can run requests."""

    async def run(self, job: Job) -> None:
        """Run one request to its end."""
        ...


class Driver:
    """One load process's run. `tally` counts; `live_tokens` is for progress."""

    def __init__(self, plan: LoadPlan, clients: Sequence[SimulatedClient]) -> None:
        self._plan = plan
        self._clients = clients
        self._rng = random.Random(plan.seed)
        self._barrier = asyncio.Barrier(sum(plan.sessions))
        # It lets those that wait in the order in which they came, so that all take turns.
        self._turn = asyncio.Lock()
        self._begun_at = 0.0
        self._in_flight = 0
        self._watches: set[RequestWatch] = set()
        self._ended_tokens = 0
        self.tally = Tally()

    @property
    def live_tokens(self) -> int:
        """New tokens so far, of running requests too."""
        return self._ended_tokens + sum(watch.tokens for watch in self._watches)

    @property
    def in_flight(self) -> int:
        """Requests that run now."""
        return self._in_flight

    async def run(self) -> None:
        """Run the plan to its end; what was begun is let finish."""
        self._begun_at = time.monotonic()
        cpu_from = time.process_time()
        lag = asyncio.create_task(self._watch_lag())
        try:
            if self._plan.arrivals is Arrivals.CLOSED:
                await self._closed_loop()
            else:
                await self._open_loop()
        finally:
            lag.cancel()
        wall_s = time.monotonic() - self._begun_at
        self.tally.busiest_share = (time.process_time() - cpu_from) / wall_s

    async def _watch_lag(self) -> None:
        while True:
            due = time.monotonic() + _LAG_CHECK_S
            await asyncio.sleep(_LAG_CHECK_S)
            self.tally.lag.note(time.monotonic() - due)

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
            if not await self._request(client, self._plan.drawn(self._rng)):
                await asyncio.sleep(_AFTER_ERROR_S)
            if once:
                return

    async def _open_loop(self) -> None:
        async with asyncio.TaskGroup() as running:
            for number, request in enumerate(self._plan.requests(self._rng)):
                if request.at_s > self._plan.duration_s:
                    return
                await asyncio.sleep(max(0.0, request.at_s - self._elapsed()))
                if self._in_flight >= _MAX_IN_FLIGHT:
                    self.tally.unsent += 1
                    continue
                running.create_task(self._request(number % len(self._clients), request))

    async def _request(self, client: int, request: Request) -> bool:
        """Run one request; whether it went well."""
        plan = self._plan
        fate = self._rng.random()
        vanishes = fate < plan.vanishes
        stops = not vanishes and fate < plan.vanishes + plan.stops
        if vanishes or stops:
            half = max(1, request.new_tokens // 2)
            request = request.model_copy(update={"new_tokens": half})
        name = f"{plan.seed}-{client}"
        watch = RequestWatch(name, time.monotonic(), self._begun_at + plan.warmup_s)
        job = Job(request, watch, vanishes=vanishes)
        if plan.together:
            job.gate = self._barrier.wait
        if plan.in_turn:
            job.turn = self._turn
        outcome = await self._outcome(client, job)
        if outcome is Outcome.DONE and (vanishes or stops):
            outcome = Outcome.VANISHED if vanishes else Outcome.STOPPED
        watch.end(outcome, time.monotonic(), self.tally, plan.slo)
        self._count(job)
        return isinstance(outcome, Outcome) and outcome is not Outcome.BUSY

    async def _outcome(self, client: int, job: Job) -> Outcome | str:
        self._in_flight += 1
        self._watches.add(job.watch)
        try:
            await self._clients[client].run(job)
        except Busy:
            return Outcome.BUSY
        except FedSeaError as error:
            if self._plan.together:
                await self._barrier.abort()
            return type(error).__name__
        except asyncio.BrokenBarrierError:
            return "BrokenBarrier"
        finally:
            self._in_flight -= 1
            self._watches.discard(job.watch)
            self._ended_tokens += job.watch.tokens
        return Outcome.DONE

    def _count(self, job: Job) -> None:
        self.tally.refusals += job.traffic.refusals
        self.tally.round_trips += job.traffic.round_trips
        self.tally.direct_trips += job.traffic.direct_trips
        self.tally.bytes_up += job.traffic.bytes_up
        self.tally.bytes_down += job.traffic.bytes_down
