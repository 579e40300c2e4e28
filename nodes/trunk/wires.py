"""A trunk node's sockets: the links to its brokers, and the door for clients if it has one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Self

from fedsea_mq.errors import FedSeaError, RemoteError
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.security.identity import ANYBODY, Identity
from fedsea_mq.security.keyring import Keyring
from fedsea_mq.security.node_seals import NodeSeals
from fedsea_mq.security.trust_watch import TrustWatch
from fedsea_mq.serving.trunk_sessions import BROKER, DIRECT, of_broker
from fedsea_mq.settings import Settings
from fedsea_mq.transport.direct_listener import WELCOME, DirectListener
from fedsea_mq.transport.frame_counts import Direction, FrameCounts
from fedsea_mq.transport.link import PeerLink
from fedsea_mq.transport.loop_socket import Context


def _keep_trying(_: RemoteError) -> None:
    """The broker does not trust this node: the link has said so, and asks again."""


class Wires:
    """`on_frame` is called with each frame, where it came from and whose it is.

    `broker_of` says by which broker a session's client speaks; None, of one that is not held.

    What the broker passes on is as good as anybody's: it has seen to whose it is. With `seals`,
    frames come opened, and what is sent is sealed. `counts` has the totals of both. The sockets are
    of `context`, or of contexts of their own. Use with `async with`. Raises `KeyFileError`,
    `PlaintextRefused` or `ConfigError`, as the keys are.
    """

    def __init__(
        self,
        settings: Settings,
        on_frame: Callable[[Frame, bytes, Identity], None],
        broker_of: Callable[[bytes], bytes | None],
        seals: NodeSeals | None = None,
        context: Context | None = None,
    ) -> None:
        self._on_frame = on_frame
        self._broker_of = broker_of
        self._seals = seals
        self.counts = FrameCounts(Direction.DOWN)
        broker, direct = settings.broker, settings.trunk.direct
        max_part_bytes = broker.max_part_mb << 20
        self._keyring = Keyring.load(settings.security)
        self._endpoints = broker.all_for_nodes
        self._links = {
            of_broker(number): PeerLink(
                endpoint,
                partial(self._receive, origin=of_broker(number), who=ANYBODY),
                max_part_bytes=max_part_bytes,
                keys=self._keyring.to_broker(endpoint),
                on_refused=_keep_trying,
                context=context,
                counts=self.counts,
            )
            for number, endpoint in enumerate(self._endpoints)
        }
        self._listener: DirectListener | None = None
        if direct is not None:
            self._listener = DirectListener(
                direct,
                self._receive_directly,
                self._undelivered,
                max_part_bytes=max_part_bytes,
                max_queued=broker.max_queued_frames,
                max_connections=settings.trunk.max_sessions,
                counts=self.counts,
                keys=self._keyring.door(direct, *WELCOME),
                context=context,
            )
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for link in self._links.values():
                await stack.enter_async_context(link)
            if self._listener is not None:
                await stack.enter_async_context(self._listener)
                if self._keyring.trust is not None:
                    # The broker ends the sessions of a key that it trusts no more.
                    await stack.enter_async_context(TrustWatch(*self._keyring.trust))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *reason: object) -> None:
        await self._stack.__aexit__(None, None, None)

    @property
    def direct(self) -> str | None:
        """The endpoint to offer to clients."""
        return None if self._listener is None else self._listener.endpoint

    @property
    def direct_key(self) -> bytes | None:
        """The public key to offer with it."""
        public = self._keyring.public
        return None if public is None else public.raw

    @property
    def brokers(self) -> list[bytes]:
        """Where the frames of each broker come from, the first first."""
        return list(self._links)

    def broker_at(self, broker: bytes) -> str:
        """The endpoint of one of them."""
        return self._endpoints[self.brokers.index(broker)]

    def _receive_directly(self, frame: Frame, peer: bytes, who: Identity) -> None:
        self._receive(frame, DIRECT + peer, who)

    def _receive(self, frame: Frame, origin: bytes, who: Identity) -> None:
        if self._seals is None:
            self._on_frame(frame, origin, who)
            return
        try:
            opened = self._seals.open(frame)
        except FedSeaError as error:
            self.counts.refuse(error)
            self._transmit(Frame.error(error, frame.envelope).parts(), origin)
            return
        self._on_frame(opened, origin, who)
        session = frame.envelope.session
        closes = origin in self._links and frame.envelope.kind is Kind.CLOSE
        if closes and self._broker_of(session) is None:
            self._seals.forget(session)

    def send(self, parts: Parts, to: bytes = BROKER) -> None:
        """Queue a frame for a broker, by default the first, or for a client."""
        sealed = parts if self._seals is None else self._seals.seal(parts)
        if sealed is not None:
            self._transmit(sealed, to)

    def _transmit(self, parts: Parts, to: bytes) -> None:
        if to in self._links:
            self._links[to].send(parts)
        elif self._listener is not None:
            self._listener.send(parts, to.removeprefix(DIRECT))

    def _undelivered(self, parts: Parts) -> None:
        """A result that its client's own connection did not take goes by way of its broker."""
        envelope = Envelope.decode(parts[0])
        if envelope.kind is Kind.RESULT:
            self._transmit(parts, self._broker_of(envelope.session) or BROKER)
