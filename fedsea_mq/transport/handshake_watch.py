"""What becomes of a link's handshakes: ZeroMQ tries them in the background and says nothing."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, Self

import zmq

from fedsea_mq.log import get_logger
from fedsea_mq.transport.loop_socket import LoopSocket

_log = get_logger(__name__)
_EVENT: Final = struct.Struct("=HI")
_FAILURES: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
# One may fail because the peer was just stopped; so many in a row mean something else.
_TELLING: Final = 3


class HandshakeWatch:
    """Watches `socket`, which connects. Enter after it, and before it connects.

    `on_refused` is called when the peer refused this process's key, `on_given_up` when ZeroMQ does
    not try again by itself for this or another reason.
    """

    def __init__(
        self,
        socket: LoopSocket,
        endpoint: str,
        on_refused: Callable[[], None],
        on_given_up: Callable[[], None],
    ) -> None:
        self._watched = socket
        self._endpoint = endpoint
        self._on_refused = on_refused
        self._on_given_up = on_given_up
        self._failed = 0
        self._refused = 0
        self._monitor: LoopSocket | None = None

    async def __aenter__(self) -> Self:
        self._monitor = LoopSocket(
            zmq.PAIR,
            self._happened,
            max_part_bytes=1 << 12,
            max_queued=4096,
            copy=True,
            context=self._watched.context,
        )
        await self._monitor.__aenter__()
        events = _FAILURES | zmq.EVENT_HANDSHAKE_SUCCEEDED
        self._monitor.connect(self._watched.monitored(events))
        return self

    async def __aexit__(self, *reason: object) -> None:
        assert self._monitor is not None
        await self._monitor.__aexit__(*reason)

    def _happened(self, parts: list[bytes]) -> None:
        match _EVENT.unpack(parts[0]):
            case zmq.EVENT_HANDSHAKE_SUCCEEDED, _:
                self._failed = self._refused = 0
            case zmq.EVENT_HANDSHAKE_FAILED_AUTH, _:
                self._refused += 1
                if self._refused == 1:
                    _log.warning("this process's key is not trusted", endpoint=self._endpoint)
                self._on_refused()
                self._on_given_up()
            case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, _:
                self._count_failure()
                self._on_given_up()
            case _:
                self._count_failure()

    def _count_failure(self) -> None:
        self._failed += 1
        if self._failed == _TELLING:
            _log.warning(
                "no handshake succeeds: one side has keys and the other none, "
                "security.broker_key is not the broker's, or it has enough connections",
                endpoint=self._endpoint,
            )
