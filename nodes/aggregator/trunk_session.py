"""The aggregator's own session with the trunk of its run: begins and ends rounds there."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from fedsea_mq.errors import (
    Busy,
    MalformedFrame,
    NotRunning,
    PeerUnreachable,
    RemoteError,
    RunUnknown,
    SessionLost,
    SessionUnknown,
)
from fedsea_mq.log import get_logger
from fedsea_mq.protocol.envelope import SESSION_BYTES, Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Accept, Nothing
from fedsea_mq.protocol.training_messages import BeginRound, EndRound, Enlist, RoundState
from fedsea_mq.transport.requests import Requests

_log = get_logger(__name__)
# What passes: the trunk or the broker is away, or has yet to register.
_PASSING: Final = (RunUnknown, Busy, SessionLost, SessionUnknown, PeerUnreachable)
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 2.0


class TrunkSession:
    """Enlists when it is needed, and again when it was lost: then `on_lost` is called, too.

    `receive` must be given the frames of the link. `run` keeps the lease, for the node's life.
    """

    def __init__(
        self,
        requests: Requests,
        enlist: Enlist,
        give_up_s: float,
        on_lost: Callable[[], None],
    ) -> None:
        self._requests = requests
        self._enlist = enlist
        self._give_up_s = give_up_s
        self._on_lost = on_lost
        self._id = b""
        self._lease_s = 0.0
        self._open = asyncio.Event()

    def receive(self, frame: Frame) -> None:
        """Handle a frame from the broker."""
        self._requests.receive(frame)
        if frame.envelope.kind is Kind.CLOSE and frame.envelope.session == self._id:
            self._lost()

    def refused(self, error: RemoteError) -> None:
        """The broker does not trust this node's key: what is asked fails at once."""
        self._requests.refuse(error)

    async def tell(self, body: BeginRound | EndRound) -> None:
        """Begin or end a round, and wait until the trunk has done it and saved.

        Raises:
            RemoteError: the trunk refused, or was away for longer than the time to give up.
        """
        expected = RoundState(body.round + isinstance(body, EndRound), body.attempt)
        kind = Kind.BEGIN_ROUND if isinstance(body, BeginRound) else Kind.END_ROUND
        loop = asyncio.get_running_loop()
        give_up_at, pause_s = loop.time() + self._give_up_s, _FIRST_PAUSE_S
        while True:
            try:
                await self._enlisted()
                reply = await self._requests.ask(kind, body, session=self._id)
                break
            except _PASSING as error:
                if isinstance(error, SessionLost | SessionUnknown):
                    self._lost()
                if loop.time() + pause_s > give_up_at:
                    raise
                _log.info("waiting for the trunk", reason=type(error).__name__)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        if reply.envelope.kind is not Kind.ROUND_STATE or reply.body(RoundState) != expected:
            raise MalformedFrame(f"a reply that is not the trunk's state before {expected.round}")

    async def _enlisted(self) -> None:
        """Have a session, under a new id if it must be opened."""
        if self._open.is_set():
            return
        self._requests.forget(self._id)
        self._id = secrets.token_bytes(SESSION_BYTES)
        reply = await self._requests.ask(Kind.ENLIST, self._enlist, session=self._id)
        self._lease_s = reply.body(Accept).lease_ms / 1000
        self._open.set()

    def _lost(self) -> None:
        if self._open.is_set():
            self._open.clear()
            self._on_lost()

    async def run(self) -> None:
        """Renew the lease of the session that there is."""
        while True:
            await self._open.wait()
            await asyncio.sleep(self._lease_s / 3)
            session = self._id
            try:
                await self._requests.ask(Kind.RENEW, Nothing(), session=session)
            except (SessionLost, SessionUnknown):
                if session == self._id:
                    self._lost()
            except RemoteError as error:
                _log.warning("the lease could not be renewed", reason=type(error).__name__)

    def close(self) -> None:
        """Free the session."""
        with suppress(NotRunning):
            self._requests.close(self._id)
