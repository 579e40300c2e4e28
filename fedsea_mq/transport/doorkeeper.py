"""Says who may connect to a listening socket, and whose a message is that comes from it.

ZeroMQ asks a handler inside the process about each connection (ZAP), which answers by the key that
the peer has proven. The id of the key then stands on every message of the connection, put there by
this process: libzmq lets no property that a peer sends along take its place. What the key may do is
looked up anew for each.
"""

from __future__ import annotations

import math
import time
from contextlib import suppress
from typing import Any, Final, Self

import zmq

from fedsea_mq.errors import FedSeaError, PeerUnreachable, SendQueueFull
from fedsea_mq.log import get_logger
from fedsea_mq.security.identity import ANYBODY, Identity
from fedsea_mq.security.keyring import DoorKeys
from fedsea_mq.security.keys import PublicKey
from fedsea_mq.transport import zap
from fedsea_mq.transport.connection_limit import ConnectionLimit
from fedsea_mq.transport.curve import enforce_asking
from fedsea_mq.transport.loop_socket import LoopSocket

_log = get_logger(__name__)
_SMALL: Final = 1 << 12
_QUEUED: Final = 4096
_TELL_S: Final = 1.0
_USER_ID: Final = "User-Id"
_NOBODY: Final = Identity(b"", frozenset())


class Doorkeeper:
    """Stands at `socket`: enter after it, and before it is bound. Without keys, it lets all in.

    Where `limit` says that there are enough connections, those that come are to try again, or to
    `go_elsewhere`.
    """

    def __init__(
        self,
        socket: LoopSocket,
        keys: DoorKeys | None,
        limit: ConnectionLimit,
        *,
        go_elsewhere: bool = False,
    ) -> None:
        self._socket = socket
        self._keys = keys
        self._limit = limit
        self._go_elsewhere = go_elsewhere
        self._handler: LoopSocket | None = None
        self._told_at, self._untold = -math.inf, 0

    async def __aenter__(self) -> Self:
        self._handler = LoopSocket(
            zmq.ROUTER,
            self._asked,
            max_part_bytes=_SMALL,
            max_queued=_QUEUED,
            max_parts=zap.MAX_PARTS,
            copy=True,
            context=self._socket.context,
        )
        await self._handler.__aenter__()
        self._handler.bind(zap.ENDPOINT)
        self._socket.configure(enforce_asking)
        return self

    async def __aexit__(self, *reason: object) -> None:
        assert self._handler is not None
        await self._handler.__aexit__(*reason)

    def _asked(self, parts: list[bytes]) -> None:
        assert self._handler is not None
        question = zap.Question.read(parts)
        verdict = self._judge(question)
        if verdict.refusal:
            self._tell(verdict.refusal)
        with suppress(PeerUnreachable, SendQueueFull):  # who asked has gone meanwhile
            self._handler.send(question.answer(verdict))

    def _tell(self, refusal: str) -> None:
        """Log a refusal, at most one a second: whoever can connect can be refused."""
        self._untold += 1
        now = time.monotonic()
        if now - self._told_at >= _TELL_S:
            _log.warning("connection refused", reason=refusal, refusals=self._untold)
            self._told_at, self._untold = now, 0

    def _judge(self, question: zap.Question) -> zap.Verdict:
        if self._limit.is_exceeded:
            return zap.Verdict(refusal="enough connections", is_final=self._go_elsewhere)
        if self._keys is None:
            return zap.Verdict()
        if question.key is None:
            return zap.Verdict(refusal="no key was shown")
        key = PublicKey(question.key)
        try:
            self._keys.allow_list.identity(key.id).must_be(*self._keys.parties)
        except FedSeaError as error:
            return zap.Verdict(refusal=f"key {key}: {error}")
        return zap.Verdict(user_id=str(key))

    def who(self, address: Any) -> Identity:
        """Whose a message is, by the `zmq.Frame` of its sender's address; and what that may do now.

        Of a message that bears no key where all must have one, nobody's.
        """
        if self._keys is None:
            return ANYBODY
        try:
            key_id = bytes.fromhex(address.get(_USER_ID))
        except (zmq.ZMQError, ValueError):
            return _NOBODY
        return self._keys.allow_list.identity(key_id)
