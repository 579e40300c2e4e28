"""One request on its way through a simulated client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field

from fedsea_mq.load.plan import Request
from fedsea_mq.load.tally import RequestWatch
from fedsea_mq.transport.requests import Traffic


async def _open_gate() -> None:
    return


@dataclass(slots=True, eq=False)
class Job:
    """What to ask, who watches, and how it ends.

    `gate` is passed between prefill and decode, `turn` is held during each decode step.
    Who `vanishes` does not close its session.
    """

    request: Request
    watch: RequestWatch
    vanishes: bool = False
    gate: Callable[[], Awaitable[object]] = _open_gate
    turn: AbstractAsyncContextManager[object] = field(default_factory=nullcontext)
    traffic: Traffic = field(default_factory=Traffic)
