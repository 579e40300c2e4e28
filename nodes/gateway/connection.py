"""One HTTP connection: uvicorn's own waits for an idle peer as long as that likes."""

from __future__ import annotations

import asyncio
import fcntl
import termios
from collections.abc import Iterator
from typing import Any, Final

import h11
from uvicorn.protocols.http.flow_control import service_unavailable
from uvicorn.protocols.http.h11_impl import H11Protocol

# So many more than there may be are told that there are too many; others are shut at once.
_TOLD: Final = 64


class _Patience:
    """Cuts a transport off if it does not end in time; to begin again does not make it longer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, transport: asyncio.Transport) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, transport.abort)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Connection(H11Protocol):
    """Ends when its peer takes longer than `stalled_s` for the head of a request or for an answer.

    What is sent in between does not count: a head that comes byte by byte is late, too. There are
    `most` places; who has one is served, however many come later. Where all are held, a request
    has that of the connection that has asked for nothing the longest, or is refused.
    """

    def __init__(self, *of: Any, stalled_s: float, most: int, **named: Any) -> None:
        super().__init__(*of, **named)
        self._most = most
        self._has_place = False
        # Since when it asks for nothing; None while it is answered.
        self._waits_since: float | None = None
        self._head = _Patience(self.loop, stalled_s)
        self._taken = _Patience(self.loop, stalled_s)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Its head is waited for, from now on."""
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        self._waits_since = self.loop.time()
        self._has_place = self._is_place_free
        if not self._has_place:
            self.app = self._serve_in_place_of_another
            if len(self.connections) > self._most + _TOLD:
                transport.abort()
        self._head.begin(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # or it is kept until then, whoever shut it
        self._head.end()
        self._taken.end()

    def data_received(self, data: bytes) -> None:
        """Part of a request, or all of it."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._head.begin(self.transport)
        else:
            self._head.end()
            self._waits_since = None
        self._end_if_closing()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP; in the midst of an answer that cannot be said."""
        if self.cycle is not None and not self.cycle.response_complete:
            # For whoever answers, or is about to, the peer is gone.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.abort()

    def pause_writing(self) -> None:
        """Its peer takes no more of an answer, for now."""
        super().pause_writing()
        self._taken.begin(self.transport)

    def resume_writing(self) -> None:
        """It takes more."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._taken.end()

    def on_response_complete(self) -> None:
        """All of an answer was given to the transport."""
        super().on_response_complete()
        self._end_if_closing()
        if self.cycle.response_complete:
            self._waits_since = self.loop.time()
            if self.conn.trailing_data[0]:
                self._head.begin(self.transport)  # its first part came with the request before

    def timeout_keep_alive_handler(self) -> None:
        """Nothing was asked for long."""
        super().timeout_keep_alive_handler()
        self._end_if_closing()

    def _end_if_closing(self) -> None:
        """A transport that closes waits until its peer has taken what was sent."""
        if self.transport.is_closing():
            self._taken.begin(self.transport)

    @property
    def _holders(self) -> Iterator[Connection]:
        """Those that have a place: others, wherever it is asked."""
        for one in self.connections:
            assert isinstance(one, Connection)
            if one._has_place:
                yield one

    @property
    def _is_place_free(self) -> bool:
        return len(self.connections) <= self._most or sum(1 for _ in self._holders) < self._most

    async def _serve_in_place_of_another(self, *of: Any) -> None:
        self._has_place = self._is_place_free or self._takes_place()
        if self._has_place:
            self.app = self.config.loaded_app
            await self.app(*of)
        else:
            await service_unavailable(*of)

    def _takes_place(self) -> bool:
        waiting = {since: one for one in self._holders if (since := one._waits_since) is not None}
        idle = [since for since, one in waiting.items() if _is_all_taken(one.transport)]
        if not idle:
            return False
        longest = waiting[min(idle)]
        longest._has_place = False
        longest.transport.abort()
        return True


def _is_all_taken(transport: asyncio.Transport) -> bool:
    """Whether the peer has all that was sent: with TLS, the transport does not tell.

    What waits in this process does so because the socket's own queue is full.
    """
    try:
        queue = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return False
    return not any(queue)
