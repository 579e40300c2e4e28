"""A client's connections to trunk nodes past the broker: who offers one, and whether it works.

A node offers an endpoint when it accepts a session. The client connects, asks there for a renewal
of that session, and sends its states there once that was answered. Where nothing comes back, they
go through the broker.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, Self

from fedsea_mq.errors import FedSeaError
from fedsea_mq.log import get_logger
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.protocol.messages import Accept, Nothing
from fedsea_mq.security.keyring import Keyring
from fedsea_mq.security.settings import NO_KEYS
from fedsea_mq.transport.frame_counts import FrameCounts
from fedsea_mq.transport.link import MakeLink, PeerLink
from fedsea_mq.transport.requests import Requests, Traffic

_log = get_logger(__name__)
# A session's first states wait this long for its probe; on most networks it takes far less.
_PROBE_S: Final = 1.0
# A link that brings no answer is made anew, at most this often.
_MEND_S: Final = 1.0
# Nodes say where to connect, so there must be an end to it.
MAX_LINKS: Final = 16
_NO_KEYRING: Final = Keyring.load(NO_KEYS)
# Where a node is, and the key that it has there.
_Offer = tuple[str, bytes | None]


@dataclass(slots=True, eq=False)
class _Connection:
    offer: _Offer
    link: PeerLink
    made_at: float
    sessions: int = 0
    # Something was sent there, and nothing came back since.
    silent: bool = False


class DirectLinks:
    """One link an endpoint, shared by the client's sessions there. Use with `async with`.

    `wanted` says whether this client connects to nodes at all. A link stays when its last session
    has ended, for the next one, until another endpoint needs its place. `keyring` holds the keys
    that links are encrypted and known by; `counts`, what their frames are counted in.
    """

    def __init__(
        self,
        make_link: MakeLink,
        requests: Requests,
        *,
        wanted: bool,
        max_part_bytes: int,
        keyring: Keyring = _NO_KEYRING,
        counts: FrameCounts | None = None,
    ) -> None:
        self._make_link = make_link
        self._requests = requests
        self._wanted = wanted
        self._max_part_bytes = max_part_bytes
        self._keyring = keyring
        self._counts = counts
        self._connections: dict[_Offer, _Connection] = {}
        # Closing one takes a moment, in which another session may want the same.
        self._changing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        closing, self._connections = self._connections, {}
        await asyncio.gather(*(one.link.__aexit__() for one in closing.values()))

    def __len__(self) -> int:
        return len(self._connections)

    async def path(self, session: bytes, terms: Accept) -> DirectPath:
        """The session's way to its node; one that cannot be used, if there is none."""
        if not self._wanted or terms.direct is None:
            return DirectPath(self, self._requests, session, None)
        async with self._changing:
            connection = await self._connection((terms.direct, terms.direct_key))
        return DirectPath(self, self._requests, session, connection)

    async def _connection(self, offer: _Offer) -> _Connection | None:
        known = self._connections.get(offer)
        if known is not None:
            return known
        if len(self._connections) >= MAX_LINKS and not await self._make_room():
            return None
        link = await self._connect(offer)
        if link is None:
            return None
        made = _Connection(offer, link, asyncio.get_running_loop().time())
        self._connections[offer] = made
        return made

    async def _connect(self, offer: _Offer) -> PeerLink | None:
        endpoint, key = offer
        try:
            link = self._make_link(
                endpoint,
                lambda frame: self._receive(offer, frame),
                max_part_bytes=self._max_part_bytes,
                keys=self._keyring.to_node(endpoint, key),
                counts=self._counts,
            )
            return await link.__aenter__()
        except FedSeaError as error:
            _log.warning("no direct connection", reason=str(error))
            return None

    async def mend(self, connection: _Connection) -> None:
        """Connect anew, for all sessions there, if nothing came back and it was not done just now.

        ZeroMQ never tries again where it was refused, as by a node with enough connections.
        """
        async with self._changing:
            now = asyncio.get_running_loop().time()
            if not connection.silent or now - connection.made_at < _MEND_S:
                return
            link = await self._connect(connection.offer)
            if link is not None:
                old, connection.link, connection.made_at = connection.link, link, now
                await old.__aexit__()

    async def _make_room(self) -> bool:
        unused = (name for name, one in self._connections.items() if not one.sessions)
        oldest = next(unused, None)
        if oldest is not None:
            await self._connections.pop(oldest).link.__aexit__()
        return oldest is not None

    def _receive(self, offer: _Offer, frame: Frame) -> None:
        if offer in self._connections:
            self._connections[offer].silent = False
        self._requests.receive_directly(frame)


class DirectPath:
    """One session's way to its node past the broker: a `DirectWay`, if it `is_usable`."""

    def __init__(
        self,
        links: DirectLinks,
        requests: Requests,
        session: bytes,
        connection: _Connection | None,
    ) -> None:
        self._links = links
        self._requests = requests
        self._session = session
        self._connection = connection
        self._proven = False
        self._judged = asyncio.Event()
        self._probing: asyncio.Task[None] | None = None
        if connection is not None:
            connection.sessions += 1
            self.try_again()

    @property
    def is_usable(self) -> bool:
        """Whether the node was heard of this session there, and has not fallen silent since."""
        connection = self._connection
        return connection is not None and self._proven and not connection.silent

    def try_again(self) -> None:
        """See whether the way works, unless it is known to, or being seen already."""
        idle = self._probing is None or self._probing.done()
        if self._connection is not None and idle and not self.is_usable:
            probing = self._probe(self._connection)
            self._probing = asyncio.create_task(probing, name="fedsea direct probe")

    async def _probe(self, connection: _Connection) -> None:
        traffic = Traffic()
        await self._links.mend(connection)
        try:
            async with asyncio.timeout(_PROBE_S):
                await self._requests.ask(
                    Kind.RENEW,
                    Nothing(),
                    session=self._session,
                    traffic=traffic,
                    direct=_Probe(connection),
                )
        except (TimeoutError, FedSeaError):
            pass
        # An answer to the same request through the broker proves nothing.
        self._proven = traffic.direct_trips > 0
        connection.silent = not self._proven
        self._judged.set()

    async def settled(self) -> DirectPath | None:
        """The way to take now, once it is known; not waited for where nobody answered before."""
        connection = self._connection
        if connection is not None and not connection.silent:
            await self._judged.wait()
        return self if self.is_usable else None

    def send(self, parts: Parts) -> None:
        """Queue a request for the node."""
        assert self._connection is not None
        self._connection.link.send(parts)

    def failed(self) -> None:
        """A request brought no answer: the session goes on through the broker."""
        assert self._connection is not None
        self._proven = False
        self._connection.silent = True
        _log.info("a node does not answer directly; going on through the broker")

    def close(self) -> None:
        """The session is over."""
        if self._probing is not None:
            self._probing.cancel()
        if self._connection is not None:
            self._connection.sessions -= 1
            self._connection = None


@dataclass(frozen=True, slots=True)
class _Probe:
    """The way that a probe takes; whether it was answered is seen by its traffic."""

    connection: _Connection

    def send(self, parts: Parts) -> None:
        self.connection.link.send(parts)

    def failed(self) -> None:
        return
