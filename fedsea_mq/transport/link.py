"""A connection to one peer: a client's or node's to the broker, a client's to a trunk node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Final, Self, TypeVar

import zmq

from fedsea_mq.errors import FedSeaError, NotRunning, NotTrusted, RemoteError, SendQueueFull
from fedsea_mq.log import get_logger
from fedsea_mq.protocol.bundle import is_bundle, unbundled
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.security.keyring import LinkKeys
from fedsea_mq.transport.frame_counts import Direction, FrameCounts
from fedsea_mq.transport.handshake_watch import HandshakeWatch
from fedsea_mq.transport.loop_socket import Context, LoopSocket
from fedsea_mq.transport.outbox import Outbox

R = TypeVar("R")
MakeLink = Callable[..., "PeerLink"]
_log = get_logger(__name__)
# A dealer has one peer and does not address it.
_PEER: Final = b""
# ZeroMQ does not try again where it was refused. Somebody may add the key, so the link does.
_AGAIN_S: Final = 1.0


class PeerLink:
    """Sends frames to a peer and hands on what comes back. Use with `async with`.

    ZeroMQ reconnects by itself: messages sent while the peer is away are queued up to
    `max_queued`, then let go; requests are made again by whoever waits for an answer.

    `keys` are what the link is encrypted and known by. `on_refused` is told when the peer does not
    trust them; the link keeps trying. `counts` may be shared with other links.
    """

    def __init__(
        self,
        endpoint: str,
        on_frame: Callable[[Frame], None],
        *,
        max_part_bytes: int,
        max_queued: int = 4096,
        context: Context | None = None,
        keys: LinkKeys | None = None,
        on_refused: Callable[[RemoteError], None] | None = None,
        counts: FrameCounts | None = None,
    ) -> None:
        self._counts = FrameCounts(Direction.UP) if counts is None else counts
        self._endpoint = endpoint
        self._on_frame = on_frame
        self._keys = keys
        self._on_refused = on_refused
        self._again: asyncio.TimerHandle | None = None
        self._stack = AsyncExitStack()
        self._socket = LoopSocket(
            zmq.DEALER,
            self._read,
            max_part_bytes=max_part_bytes,
            max_queued=max_queued,
            copy=True,
            split=self._split,
            context=context,
            keys=keys,
        )
        self._outbox = Outbox(self._transmit)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._socket)
            if self._on_refused is not None:
                watch = HandshakeWatch(
                    self._socket, self._endpoint, self._refused, self._connect_later
                )
                await stack.enter_async_context(watch)
            self._socket.connect(self._endpoint)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._outbox.flush()
        if self._again is not None:
            self._again.cancel()
        await self._stack.__aexit__(None, None, None)

    def _refused(self) -> None:
        assert self._on_refused is not None
        own = (
            "this process, which has no key"
            if self._keys is None
            else f"key {self._keys.own.public}"
        )
        self._on_refused(NotTrusted(f"{self._endpoint} does not trust {own}"))

    def _connect_later(self) -> None:
        if self._again is not None:
            self._again.cancel()
        loop = asyncio.get_running_loop()
        self._again = loop.call_later(_AGAIN_S, self._socket.connect_again, self._endpoint)

    def send(self, parts: Parts) -> None:
        """Queue a frame for the peer. Raises `NotRunning`."""
        if not self._socket.is_open:
            raise NotRunning("the link is not open")
        self._counts.went(parts)
        self._outbox.put(_PEER, parts)

    def _transmit(self, _: bytes, parts: Parts, run: Sequence[Parts]) -> None:
        try:
            self._socket.send(parts)
        except SendQueueFull as error:
            _log.warning("the peer is away", frames_let_go=len(run), reason=str(error))

    def _read(self, parts: list[bytes]) -> None:
        self._counts.came(parts)
        frame = self._readable(Frame.read, parts)
        if frame is not None:
            self._on_frame(frame)

    def _split(self, parts: list[bytes]) -> Sequence[list[bytes]]:
        return (self._readable(unbundled, parts) or []) if is_bundle(parts) else [parts]

    def _readable(self, read: Callable[[Parts], R], parts: Parts) -> R | None:
        try:
            return read(parts)
        except FedSeaError as error:
            # Only the peer can write to this link; sizes and versions are safe to log.
            _log.warning("frame refused", reason=str(error))
            self._counts.refuse(error)
            return None
