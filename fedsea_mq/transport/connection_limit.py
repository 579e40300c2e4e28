"""An end to how many peers may connect to a listening socket.

ZeroMQ has none of its own. It tells of connections made and lost (a monitor), and asks a handler
whether a new one may stay (ZAP, ZeroMQ RFC 27), which here says no when there are enough.
"""

from __future__ import annotations

import struct
from contextlib import AsyncExitStack
from functools import partial
from typing import Final, Self

import zmq

from fedsea_mq.log import get_logger
from fedsea_mq.transport.loop_socket import Context, LoopSocket

_log = get_logger(__name__)
_HANDLER: Final = "inproc://zeromq.zap.01"
_EVENT: Final = struct.Struct("=Hi")
_SMALL: Final = 1 << 12
_QUEUED: Final = 4096


class ConnectionLimit:
    """Keeps the connections to `socket` at `most`. Enter before the socket is bound.

    `context` is the socket's, and no other socket of it listens: the count is for all of it.
    """

    def __init__(self, socket: LoopSocket, most: int, context: Context) -> None:
        self._limited = socket
        self._most = most
        self._open: set[int] = set()
        inside = partial(LoopSocket, max_part_bytes=_SMALL, max_queued=_QUEUED, copy=True)
        self._handler = inside(zmq.ROUTER, self._asked, context=context)
        self._monitor = inside(zmq.PAIR, self._happened, context=context)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._handler)
            self._handler.bind(_HANDLER)
            await stack.enter_async_context(self._monitor)
            self._monitor.connect(
                self._limited.monitored(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
            )
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *reason: object) -> None:
        await self._stack.__aexit__(None, None, None)

    def _happened(self, parts: list[bytes]) -> None:
        event, descriptor = _EVENT.unpack(parts[0])
        if event == zmq.EVENT_ACCEPTED:
            self._open.add(descriptor)
        else:
            self._open.discard(descriptor)

    def _asked(self, parts: list[bytes]) -> None:
        asker, empty, version, request = parts[:4]
        full = len(self._open) > self._most
        if full:
            _log.warning("connection refused", connections=len(self._open), most=self._most)
        verdict = [b"400", b"enough connections"] if full else [b"200", b"OK"]
        self._handler.send([asker, empty, version, request, *verdict, b"", b""])
