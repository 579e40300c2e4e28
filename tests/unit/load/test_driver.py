"""The driver of a load process, with clients whose behaviour is known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from fedsea_mq.errors import Busy, LimitExceeded
from fedsea_mq.load.plan import Arrivals, Lengths, LoadPlan, Request
from fedsea_mq.load.tally import Tally
from nodes.load.driver import Driver, SimulatedClient
from nodes.load.job import Job


def plan(**changed: Any) -> LoadPlan:
    fields: dict[str, Any] = {
        "sessions": (1, 1),
        "prompt": Lengths.parse("8"),
        "new": Lengths.parse("2"),
        "duration_s": 0.6,
    }
    return LoadPlan(**(fields | changed))


async def driven(made: LoadPlan, clients: Sequence[SimulatedClient]) -> Tally:
    driver = Driver(made, clients)
    async with asyncio.timeout(20):
        await driver.run()
    return driver.tally


class Steady:
    """Brings a token each few milliseconds."""

    async def run(self, job: Job) -> None:
        for _ in range(job.request.new_tokens):
            await asyncio.sleep(0.005)
            job.watch.token(time.monotonic())
            job.traffic.bytes_up += 1


class Refused:
    """Is told busy, and gives up."""

    async def run(self, job: Job) -> None:
        job.traffic.refusals += 1
        raise Busy("no room", 0.1)


class Meets:
    """All that it asks for is refused."""

    async def run(self, job: Job) -> None:
        raise LimitExceeded(f"{job.request.prompt_tokens} positions, this node holds 4")


class FirstToken:
    """Waits for the others after its first token."""

    async def run(self, job: Job) -> None:
        job.watch.token(time.monotonic())
        await job.gate()


class Stalls:
    """Holds up the whole event loop with its first request."""

    def __init__(self) -> None:
        self._stalled = False

    async def run(self, job: Job) -> None:
        if not self._stalled:
            self._stalled = True
            time.sleep(1.0)
        job.watch.token(time.monotonic())


async def test_the_wait_of_a_request_begins_when_it_was_due() -> None:
    trace = tuple(Request(at_s=n / 10, prompt_tokens=1, new_tokens=1) for n in range(15))
    tally = await driven(plan(arrivals=Arrivals.TRACE, trace=trace, duration_s=2.0), [Stalls()] * 2)
    assert tally.ttft.count == 15
    assert tally.ttft.percentile(100) > 0.85
    assert tally.lag.percentile(100) > 0.8
    assert tally.late_share > 0.25


async def test_what_the_warm_up_did_is_not_counted() -> None:
    whole = await driven(plan(), [Steady()] * 2)
    late = await driven(plan(warmup_s=0.5), [Steady()] * 2)
    assert 0 < late.tokens < whole.tokens / 2
    assert late.outcomes["done"] < whole.outcomes["done"] / 2
    assert 0 < late.bytes_up < whole.bytes_up / 2
    assert late.unfinished + late.outcomes["done"] > 0


async def test_given_one_that_is_refused_then_the_others_do_not_wait_for_it() -> None:
    tally = await driven(plan(together=True), [FirstToken(), Refused()])
    assert tally.outcomes["busy"] == 1
    assert tally.errors == {"BrokenBarrier": 1}
    assert tally.refusals == 1


async def test_the_first_error_of_a_name_is_told() -> None:
    tally = await driven(plan(once=True), [Meets(), Meets()])
    assert tally.errors == {"LimitExceeded": 2}
    assert tally.said == {"LimitExceeded": "8 positions, this node holds 4"}
