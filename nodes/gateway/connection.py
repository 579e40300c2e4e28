"""One HTTP connection: uvicorn's own waits for an idle peer as long as that likes."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

# So many more than there may be are told that there are too many; others are shut at once.
_TOLD: Final = 64


class Connection(H11Protocol):
    """Ends when its peer takes longer than `stalled_s` for the head of a request or for an answer.

    What is sent in between does not count: a head that comes byte by byte is late, too. Who came
    when there were no more than `limit_concurrency` is served, however many come later.
    """

    def __init__(self, *of: Any, stalled_s: float, **named: Any) -> None:
        super().__init__(*of, **named)
        self._stalled_s = stalled_s
        self._head: asyncio.TimerHandle | None = None
        self._taken: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Its head is waited for, from now on."""
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        most, count = self.limit_concurrency, len(self.connections)
        if most is not None:
            self.limit_concurrency = 0 if count > most else None
            if count > most + _TOLD:
                transport.abort()
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # or it is kept until then, whoever shut it
        self._stop_awaiting_head()
        self._stop_awaiting_taken()

    def data_received(self, data: bytes) -> None:
        """Part of a request, or all of it."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._await_head()
        else:
            self._stop_awaiting_head()
        self._end_if_closing()

    def pause_writing(self) -> None:
        """Its peer takes no more of an answer, for now."""
        super().pause_writing()
        self._await_taken()

    def resume_writing(self) -> None:
        """It takes more."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_awaiting_taken()

    def on_response_complete(self) -> None:
        """All of an answer was given to the transport."""
        super().on_response_complete()
        self._end_if_closing()
        if self.cycle.response_complete and self.conn.trailing_data[0]:
            self._await_head()  # its first part came with the request before

    def timeout_keep_alive_handler(self) -> None:
        """Nothing was asked for long."""
        super().timeout_keep_alive_handler()
        self._end_if_closing()

    def _end_if_closing(self) -> None:
        """A transport that closes waits until its peer has taken what was sent."""
        if self.transport.is_closing():
            self._await_taken()

    def _await_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(self._stalled_s, self.transport.abort)

    def _stop_awaiting_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _await_taken(self) -> None:
        if self._taken is None:
            self._taken = self.loop.call_later(self._stalled_s, self.transport.abort)

    def _stop_awaiting_taken(self) -> None:
        if self._taken is not None:
            self._taken.cancel()
            self._taken = None
