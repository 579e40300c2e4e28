"""Choices as server-sent events: what came in one turn of the loop goes out in one write."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Final

from starlette.types import Send

from nodes.gateway.answer import Answer
from nodes.gateway.choice import Choice, together
from nodes.gateway.exchange import ClientGone

# Events that wait for a slow reader; beyond that its generations wait.
_MOST_HELD: Final = 64
_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class EventStream:
    """A response that begins with its first event, so that what fails before has a status."""

    def __init__(self, send: Send, stalled_s: float) -> None:
        self._send = send
        self._stalled_s = stalled_s
        self.begun = False

    async def write(self, said: bytes, *, more: bool = True) -> None:
        """Send events, the last ones if there are no `more`.

        Raises:
            ClientGone: nobody takes them for too long.
        """
        if not self.begun:
            self.begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        try:
            async with asyncio.timeout(self._stalled_s):
                await self._send({"type": "http.response.body", "body": said, "more_body": more})
        except TimeoutError:
            raise ClientGone from None


async def stream(choices: Sequence[Choice], answer: Answer, out: EventStream) -> None:
    """Write the events of all choices as they come.

    Raises:
        ClientGone: nobody takes them for too long.
        FedSeaError: as the first choice that fails does.
    """
    queue: asyncio.Queue[bytes | None] = asyncio.Queue(_MOST_HELD)
    running = len(choices)
    async with together() as group:
        for choice in choices:
            group.create_task(_feed(choice, answer, queue))
        while running:
            ready = [await queue.get()]
            while not queue.empty():
                ready.append(queue.get_nowait())
            running -= ready.count(None)
            if said := b"".join(filter(None, ready)):
                await out.write(said)


async def _feed(choice: Choice, answer: Answer, queue: asyncio.Queue[bytes | None]) -> None:
    opening = answer.opening(choice.index)
    async with aclosing(choice.pieces()) as pieces:
        async for piece in pieces:
            await queue.put(opening + answer.piece(choice.index, piece))
            opening = b""
    await queue.put(None)
