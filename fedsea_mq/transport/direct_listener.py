"""Where a trunk node listens for clients itself, past the broker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final, Self

import zmq

from fedsea_mq.errors import FedSeaError, PeerUnreachable, SendQueueFull
from fedsea_mq.log import get_logger
from fedsea_mq.protocol.bundle import unbundled_from
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.security.identity import Identity, Party
from fedsea_mq.security.keyring import DoorKeys
from fedsea_mq.transport.connection_limit import ConnectionLimit
from fedsea_mq.transport.doorkeeper import Doorkeeper
from fedsea_mq.transport.frame_counts import Direction, FrameCounts
from fedsea_mq.transport.loop_socket import Context, LoopSocket
from fedsea_mq.transport.outbox import Outbox

_log = get_logger(__name__)
# Who may come here: a trunk node, where this one is the next stage of its sessions.
WELCOME: Final = (Party.CLIENT, Party.TRUNK)
_NO_ENVELOPE: Final = Envelope(Kind.ERROR)


class DirectListener:
    """Clients' own connections: hands on their frames with the address to answer to.

    Use with `async with`; `endpoint` is where it listens, with the port that `*` was given.

    Args:
        on_frame: called with each frame, its sender's address and whose it is; what is no frame,
            or comes with a key that is trusted no more, is answered with a typed error here.
        max_connections: further clients are refused, and go through the broker.
        on_undelivered: called with each message whose receiver is gone, or too slow to take it.
        counts: what its frames are counted in, if others are, too.
        keys: its own, and those of the clients that may come; without, anybody may.
        context: of which no other socket listens; if there is none, one of its own.
    """

    def __init__(
        self,
        endpoint: str,
        on_frame: Callable[[Frame, bytes, Identity], None],
        on_undelivered: Callable[[Parts], None],
        *,
        max_part_bytes: int,
        max_queued: int,
        max_connections: int,
        counts: FrameCounts | None = None,
        keys: DoorKeys | None = None,
        context: Context | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._on_frame = on_frame
        self._on_undelivered = on_undelivered
        self._counts = FrameCounts(Direction.DOWN) if counts is None else counts
        self._socket = LoopSocket(
            zmq.ROUTER,
            self._read,
            max_part_bytes=max_part_bytes,
            max_queued=max_queued,
            copy=False,
            split=partial(unbundled_from, refuse=self._refuse),
            keys=keys,
            context=context,
        )
        self._limit = ConnectionLimit(self._socket, max_connections)
        self._doorkeeper = Doorkeeper(self._socket, keys, self._limit, go_elsewhere=True)
        self._outbox = Outbox(self._transmit)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._socket)
            await stack.enter_async_context(self._limit)
            await stack.enter_async_context(self._doorkeeper)
            self.endpoint = self._socket.bind(self.endpoint)
            stack.callback(self._outbox.flush)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.__aexit__(None, None, None)

    def send(self, parts: Parts, to: bytes) -> None:
        """Queue a frame for a client."""
        self._counts.went(parts)
        self._outbox.put(to, parts)

    def _transmit(self, peer: bytes, parts: Parts, run: Sequence[Parts]) -> None:
        try:
            self._socket.send([peer, *parts])
        except (PeerUnreachable, SendQueueFull) as error:
            _log.info("not delivered directly", frames=len(run), reason=str(error))
            for message in run:
                self._on_undelivered(message)

    def _read(self, message: list[Any]) -> None:
        address, *parts = message
        self._counts.came(parts)
        peer, who = bytes(address), self._doorkeeper.who(address)
        envelope = _NO_ENVELOPE
        try:
            frame = Frame.read([bytes(part) for part in parts])
            envelope = frame.envelope
            who.must_be(*WELCOME)
        except FedSeaError as error:
            self._refuse(peer, error, envelope)
            return
        self._on_frame(frame, peer, who)

    def _refuse(self, peer: bytes, error: FedSeaError, to: Envelope = _NO_ENVELOPE) -> None:
        self._counts.refuse(error)
        self.send(Frame.error(error, to).parts(), peer)
