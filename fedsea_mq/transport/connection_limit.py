"""How many peers are connected to a listening socket: ZeroMQ has no limit of its own.

It tells of connections made and lost (a monitor); who is asked whether a new one may stay can then
say no.
"""

from __future__ import annotations

import struct
from typing import Final, Self

import zmq

from fedsea_mq.transport.loop_socket import LoopSocket

_EVENT: Final = struct.Struct("=Hi")
_SMALL: Final = 1 << 12
_QUEUED: Final = 4096


class ConnectionLimit:
    """Counts the connections to `socket`. Enter after it, and before it is bound."""

    def __init__(self, socket: LoopSocket, most: int) -> None:
        self._limited = socket
        self._most = most
        self._open: set[int] = set()
        self._monitor: LoopSocket | None = None

    async def __aenter__(self) -> Self:
        self._monitor = LoopSocket(
            zmq.PAIR,
            self._happened,
            max_part_bytes=_SMALL,
            max_queued=_QUEUED,
            copy=True,
            context=self._limited.context,
        )
        await self._monitor.__aenter__()
        self._monitor.connect(self._limited.monitored(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED))
        return self

    async def __aexit__(self, *reason: object) -> None:
        assert self._monitor is not None
        await self._monitor.__aexit__(*reason)

    @property
    def is_exceeded(self) -> bool:
        """Whether there are more connections than there may be, the newest included."""
        return len(self._open) > self._most

    def _happened(self, parts: list[bytes]) -> None:
        event, descriptor = _EVENT.unpack(parts[0])
        if event == zmq.EVENT_ACCEPTED:
            self._open.add(descriptor)
        else:
            self._open.discard(descriptor)
