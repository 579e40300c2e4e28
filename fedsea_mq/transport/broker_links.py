"""A client's way to the broker, and to another one when the first falls silent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Self

from fedsea_mq.errors import RemoteError
from fedsea_mq.log import get_logger
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.transport.link import PeerLink

_log = get_logger(__name__)
# A link to an endpoint, with what is told of its frames and of its refusal.
Connect = Callable[[str, Callable[[Frame], None], Callable[[RemoteError], None]], PeerLink]


class BrokerLinks:
    """One of several brokers at a time. Use with `async with`.

    A broker says something at least every half of its timeout to who has a session; one that says
    nothing while a request waits for longer than `silent_s` is given up for the next. What a broker
    says that was given up is not heard: it may have been asked long ago.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        connect: Connect,
        on_frame: Callable[[Frame], None],
        on_refused: Callable[[RemoteError], None],
        silent_s: float,
    ) -> None:
        self._on_frame = on_frame
        self._on_refused = on_refused
        self._silent_s = silent_s
        self._links = [
            connect(endpoint, partial(self._heard, number), partial(self._refused, number))
            for number, endpoint in enumerate(endpoints)
        ]
        self._current = 0
        self._heard_at = 0.0
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._heard_at = asyncio.get_running_loop().time()
        async with AsyncExitStack() as stack:
            for link in self._links:
                await stack.enter_async_context(link)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def send(self, parts: Parts) -> None:
        """Queue a frame for the broker. Raises `NotRunning`."""
        self._links[self._current].send(parts)

    def unanswered(self, waited_s: float) -> None:
        """A request has waited so long: go to the next broker, if this one says nothing at all."""
        now = asyncio.get_running_loop().time()
        silent_s = min(waited_s, now - self._heard_at)
        if len(self._links) > 1 and silent_s >= self._silent_s:
            self._current = (self._current + 1) % len(self._links)
            self._heard_at = now
            _log.warning("the broker is silent; going to another", number=self._current)

    def _heard(self, number: int, frame: Frame) -> None:
        if number == self._current:
            self._heard_at = asyncio.get_running_loop().time()
            self._on_frame(frame)

    def _refused(self, number: int, error: RemoteError) -> None:
        if number == self._current:
            self._on_refused(error)
