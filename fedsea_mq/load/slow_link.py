"""A link's delay, jitter, bandwidth and loss, emulated between a client and its socket."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from fedsea_mq.load.plan import Link

M = TypeVar("M")
# What a lost packet costs a TCP connection that has no other in flight: the least timeout of Linux.
_RETRANSMIT_S: Final = 0.2


class OneWay:
    """When a message that is sent now arrives: a queue in front of a wire. Pure.

    Order is kept, as TCP keeps it: a message that is late makes those behind it late.
    """

    def __init__(self, link: Link, rng: random.Random) -> None:
        self._link = link
        self._rng = rng
        self._wire_free = 0.0
        self._last = 0.0

    def arrival(self, now: float, size: int) -> float:
        """When a message of `size` bytes, sent at `now`, is there."""
        link = self._link
        wire_s = 0.0 if link.mbps is None else size * 8e-6 / link.mbps
        self._wire_free = max(now, self._wire_free) + wire_s
        late_s = self._rng.uniform(0.0, 2 * link.jitter_ms) / 1000
        lost_s = _RETRANSMIT_S if self._rng.random() < link.loss else 0.0
        there = self._wire_free + (link.delay_ms - link.jitter_ms) / 1000 + late_s + lost_s
        # Never equal: the event loop does not keep the order of timers that are due at once.
        self._last = max(self._last + 1e-9, there)
        return self._last


class SlowLink(Generic[M]):
    """Hands messages on when they would have arrived."""

    def __init__(self, link: Link, rng: random.Random, deliver: Callable[[M], None]) -> None:
        self._way = OneWay(link, rng)
        self._deliver = deliver

    def send(self, message: M, size: int) -> None:
        """Hand on `message` of `size` bytes after the link's delay."""
        loop = asyncio.get_running_loop()
        loop.call_at(self._way.arrival(loop.time(), size), self._deliver, message)
