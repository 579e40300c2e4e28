"""What the broker does with each message: messages and times in, messages out. No socket, no clock.

Sessions are opened for serving, or enlisted for training; both are relayed alike.

It keeps nothing that nodes' registrations do not bring back: which node holds which session, whose
it is, and from which connection that client spoke last. Who sends a message is an argument, an
identity that its key has proven: a session is its key's, from whatever connection. Where no keys
are in use, a session id is 16 random bytes that only its client, its node and this broker know, and
whoever presents it is its client.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from hashlib import blake2b
from typing import Any, Final

from broker.admission import Admission, Ask, Verdict
from broker.registry import Registry
from broker.routes import Route, Routes
from fedsea_mq.errors import (
    Busy,
    FedSeaError,
    MalformedFrame,
    NodeUnknown,
    NotTrusted,
    RunUnknown,
    SessionLost,
    SessionNotYours,
    SessionUnknown,
)
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import MAX_PARTS, Frame
from fedsea_mq.protocol.messages import (
    Load,
    Nothing,
    Open,
    Register,
    Registered,
    StatusReport,
    encode_body,
)
from fedsea_mq.protocol.training_messages import Enlist
from fedsea_mq.security.identity import ANYBODY, Identity, Party

Part = Any  # bytes, or a zero-copy frame of the socket library: only envelopes are ever read

# A report is made anew when it is older than this.
_REPORT_S: Final = 0.05
_NO_ENVELOPE: Final = Envelope(Kind.ERROR)
_TO_SESSION: Final = frozenset(
    {
        Kind.EXTEND,
        Kind.RENEW,
        Kind.CLOSE,
        Kind.FORWARD,
        Kind.BACKWARD,
        Kind.STEP,
        Kind.BEGIN_ROUND,
        Kind.END_ROUND,
        Kind.ASK,
        Kind.UPDATE,
        Kind.SECURE,
    }
)
_FROM_SESSION: Final = frozenset(
    {
        Kind.ACCEPT,
        Kind.BUSY,
        Kind.RESULT,
        Kind.RENEWED,
        Kind.CLOSE,
        Kind.ERROR,
        Kind.OUTPUTS,
        Kind.GRADIENT,
        Kind.STEPPED,
        Kind.ROUND_STATE,
        Kind.TASK,
        Kind.UPDATED,
        Kind.SECURED,
    }
)
_REFUSALS: Final = frozenset({Kind.BUSY, Kind.ERROR})
# Who may connect where, and register as what.
CLIENT_PARTIES: Final = (Party.CLIENT, Party.TRAINER, Party.AGGREGATOR)
NODE_PARTIES: Final = (Party.TRUNK, Party.AGGREGATOR)
_REGISTERS: Final[Mapping[Role, Party]] = {
    Role.TRUNK: Party.TRUNK,
    Role.AGGREGATOR: Party.AGGREGATOR,
}


class Side(Enum):
    """Which of the broker's two sockets."""

    CLIENTS = auto()
    NODES = auto()


@dataclass(frozen=True, slots=True)
class Send:
    """Send `parts` to `peer`."""

    side: Side
    peer: bytes
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class BrokerTerms:
    """The intervals that nodes are held to."""

    heartbeat_ms: int
    timeout_ms: int


@dataclass(slots=True)
class Counters:
    """Totals since the broker started."""

    frames_relayed: int = 0
    bytes_relayed: int = 0
    errors: int = 0


class BrokerCore:
    """The whole state of a broker."""

    def __init__(self, terms: BrokerTerms, started_at: float, secret: bytes = b"") -> None:
        self._terms = terms
        # Keys the names under which nodes know connections; the socket's own stay in here.
        self._secret = secret
        self._started_at = started_at
        self._registry = Registry(terms.timeout_ms / 1000)
        self._routes = Routes()
        self._admission = Admission(self._registry)
        self._ticked_at = started_at
        # When idle clients were last sent heartbeats, and who was sent something since.
        self._beat_at = started_at
        self._addressed: set[bytes] = set()
        # The last report and when it was made: asking often costs no more than asking seldom.
        self._report: tuple[float, bytes] | None = None
        self.counters = Counters()

    def from_client(
        self, peer: bytes, parts: Sequence[Part], now: float, who: Identity = ANYBODY
    ) -> list[Send]:
        """Handle a client's message; every fault becomes a typed error back to it.

        `peer` is where the answer goes, `who` is whose the message is.
        """
        envelope = _NO_ENVELOPE
        try:
            envelope = _envelope(parts)
            who.must_be(*CLIENT_PARTIES)
            self._check_owner(envelope.session, who)
            return list(self._client_frame(peer, envelope, parts, now, who))
        except FedSeaError as error:
            return [self._refuse(peer, envelope, error)]

    def _check_owner(self, session: bytes, who: Identity) -> None:
        if not (session and who.id):
            return
        route = self._routes.get(session)
        owner = self._admission.client_of(session) if route is None else route.owner
        if owner is not None and owner != who.id:
            raise SessionNotYours("the session was opened with another key")

    def _client_frame(
        self, peer: bytes, envelope: Envelope, parts: Sequence[Part], now: float, who: Identity
    ) -> Iterator[Send]:
        if envelope.kind in (Kind.OPEN, Kind.ENLIST):
            yield from self._open(peer, envelope, parts, now, who)
        elif envelope.kind in _TO_SESSION:
            yield from self._to_node(peer, envelope, parts, now)
        elif envelope.kind is Kind.STATUS:
            yield Send(Side.CLIENTS, peer, self._status(envelope, now))
        else:
            raise MalformedFrame(f"a {envelope.kind.name} frame is not for a client to send")

    def _open(
        self, peer: bytes, envelope: Envelope, parts: Sequence[Part], now: float, who: Identity
    ) -> Iterator[Send]:
        if not envelope.session:
            raise MalformedFrame(f"a {envelope.kind.name} frame without a session id")
        asked = self._asked(Frame(envelope, parts[1]), peer, who)
        route = self._routes.get(envelope.session)
        if route is not None:
            self._routes.asked_again(envelope.session, peer, now)
            yield self._relay(Side.NODES, route.node, [parts[0], encode_body(asked)])
        elif isinstance(asked, Enlist):
            opening = Frame(envelope, encode_body(asked))
            yield self._begin(Route(self._of_run(asked, now), peer, asked.client), opening, now)
        else:
            if not self._registry.trunks:
                raise self._yet_to_register
            yield from self._tell(self._admission.ask(Ask(peer, envelope, asked), now), now)

    def _asked(self, frame: Frame, peer: bytes, who: Identity) -> Open | Enlist:
        # Fairness is between keys, or between connections where there are none: not between
        # whatever names clients give themselves.
        client = who.id or self._alias(peer)
        if frame.envelope.kind is Kind.OPEN:
            who.must_be(Party.CLIENT)
            return replace(frame.body(Open), client=client)
        enlist = frame.body(Enlist)
        who.must_be(Party.AGGREGATOR if enlist.member is None else Party.TRAINER)
        return replace(enlist, client=client)

    def _begin(self, route: Route, opening: Frame, now: float) -> Send:
        self._routes.begin(opening.envelope.session, route, now)
        return self._relay(Side.NODES, route.node, opening.parts())

    def _of_run(self, asked: Enlist, now: float) -> bytes:
        node = self._registry.of_run(asked)
        if node is not None:
            return node.peer
        if self._is_young(now):
            raise self._yet_to_register
        raise RunUnknown(f"no {asked.role.value} of run {asked.run} is registered")

    @property
    def _yet_to_register(self) -> Busy:
        return Busy("no node has registered yet", self._terms.heartbeat_ms / 1000)

    def _tell(self, verdicts: Sequence[Verdict], now: float) -> Iterator[Send]:
        for verdict in verdicts:
            ask, outcome = verdict.ask, verdict.outcome
            if isinstance(outcome, FedSeaError):
                yield self._refuse(ask.peer, ask.envelope, outcome)
            else:
                opening = Frame(ask.envelope, encode_body(ask.body))
                yield self._begin(Route(outcome.peer, ask.peer, ask.body.client), opening, now)

    def _refuse(self, peer: bytes, envelope: Envelope, error: FedSeaError) -> Send:
        self.counters.errors += not isinstance(error, Busy)
        return Send(Side.CLIENTS, peer, Frame.error(error, envelope).parts())

    def _alias(self, peer: bytes) -> bytes:
        return blake2b(peer, digest_size=16, key=self._secret).digest()

    def _to_node(
        self, peer: bytes, envelope: Envelope, parts: Sequence[Part], now: float
    ) -> Iterator[Send]:
        route = self._routes.get(envelope.session)
        if route is not None:
            route.client = peer
            yield self._relay(Side.NODES, route.node, parts)
            if envelope.kind is Kind.CLOSE:
                self._end(envelope.session)
                yield from self._tell(self._admission.room_was_made(now), now)
        elif envelope.kind is Kind.CLOSE:
            self._admission.gave_up(envelope.session)
        else:
            if self._is_young(now):
                # Nodes of a restarted broker have yet to say which sessions they hold.
                raise Busy("nodes are still registering", self._terms.heartbeat_ms / 1000)
            raise SessionUnknown("no node holds this session")

    def _end(self, session: bytes) -> Route:
        """Forget a session, whose room on its node is free again."""
        route = self._routes.end(session)
        self._registry.ended(route.node, session)
        return route

    def _is_young(self, now: float) -> bool:
        return now - self._started_at < self._terms.timeout_ms / 1000

    def from_node(
        self, peer: bytes, parts: Sequence[Part], now: float, who: Identity = ANYBODY
    ) -> list[Send]:
        """Handle a node's message; every fault becomes a typed error back to it."""
        envelope = _NO_ENVELOPE
        try:
            envelope = _envelope(parts)
            who.must_be(*NODE_PARTIES)
            if self._registry.owner(peer) not in (None, who.id):
                raise NotTrusted("this connection's node was registered with another key")
            return list(self._node_frame(peer, envelope, parts, now, who))
        except FedSeaError as error:
            self.counters.errors += not isinstance(error, NodeUnknown)
            return [Send(Side.NODES, peer, Frame.error(error, envelope).parts())]

    def _node_frame(
        self, peer: bytes, envelope: Envelope, parts: Sequence[Part], now: float, who: Identity
    ) -> Iterator[Send]:
        match envelope.kind:
            case Kind.REGISTER:
                yield from self._register(peer, envelope, parts, now, who)
            case Kind.HEARTBEAT:
                load = Frame(envelope, parts[1]).body(Load)
                self._registry.heartbeat(peer, load, now)
                self._compare(peer, load)
                echo = Frame.build(Kind.HEARTBEAT, Nothing(), seq=envelope.seq)
                yield Send(Side.NODES, peer, echo.parts())
                yield from self._tell(self._admission.room_was_made(now), now)
            case Kind.LEAVE:
                yield from self._lose_node(peer)
            case kind if kind in _FROM_SESSION:
                yield from self._to_client(peer, envelope, parts, now)
            case kind:
                raise MalformedFrame(f"a {kind.name} frame is not for a node to send")

    def _compare(self, peer: bytes, load: Load) -> None:
        """Have a node say again what it holds, if that is less than is routed there.

        Its frames come in order, so it holds all that it accepted and did not close. What it
        closed may be routed there all the same: if it was told to by who did not know that it was
        just about to register with it.
        """
        routed = self._routes.accepted_by(peer)
        if routed > load.sessions:
            raise NodeUnknown(f"{routed} sessions are routed to the node, which holds fewer")

    def _register(
        self, peer: bytes, envelope: Envelope, parts: Sequence[Part], now: float, who: Identity
    ) -> Iterator[Send]:
        offer = Frame(envelope, parts[1]).body(Register)
        who.must_be(_REGISTERS[offer.role])
        owners = zip(offer.sessions, _owners(offer), strict=True)
        self._registry.register(peer, offer, now, who.id)
        elsewhere = {i for i in offer.sessions if self._is_elsewhere(i, peer, offer.name)}
        held = {
            session: owner
            for session, owner in owners
            if session not in elsewhere and self._may_hold(session, who)
        }
        for session, route in self._routes.registered(peer, held, keyed=bool(who.id)):
            # A restarted broker sent it to another node before this one was here. That one closes
            # it when it answers; its room is there again.
            self._registry.ended(route.node, session)
        terms = Registered(self._terms.heartbeat_ms, self._terms.timeout_ms)
        yield Send(Side.NODES, peer, Frame.build(Kind.REGISTERED, terms, seq=envelope.seq).parts())
        yield from (
            self._close_on_node(peer, session) for session in offer.sessions if session in elsewhere
        )
        yield from self._tell(self._admission.room_was_made(now), now)

    def _is_elsewhere(self, session: bytes, peer: bytes, name: str) -> bool:
        """Whether another node than this one has accepted a session since, and goes on with it.

        Under the address that it had before its connection was made anew, a node is no other.
        """
        route = self._routes.get(session)
        if route is None or route.node == peer or not route.accepted:
            return False
        return self._registry.name_of(route.node) not in (None, name)

    def _may_hold(self, session: bytes, who: Identity) -> bool:
        """Whether no other key's node holds the session, and has not gone."""
        known = self._routes.get(session)
        return known is None or self._registry.owner(known.node) in (None, who.id)

    def _to_client(
        self, peer: bytes, envelope: Envelope, parts: Sequence[Part], now: float
    ) -> Iterator[Send]:
        route = self._routes.get(envelope.session)
        if route is None or route.node != peer:
            # Who has yet to register says then what it holds, and was only faster with an answer.
            told = envelope.kind in (Kind.CLOSE, *_REFUSALS)
            if peer in self._registry and not told:
                yield self._close_on_node(peer, envelope.session)
            return
        if route.client is not None:
            self._addressed.add(route.client)
            yield self._relay(Side.CLIENTS, route.client, parts)
        refused = envelope.kind in _REFUSALS and not route.accepted
        if envelope.kind is Kind.CLOSE or refused:
            self._end(envelope.session)
            yield from self._tell(self._admission.room_was_made(now), now)
        elif envelope.kind is Kind.ACCEPT:
            self._routes.accepted(envelope.session)
            self._registry.accepted(peer, envelope.session)

    def tick(self, now: float) -> list[Send]:
        """Declare silent nodes dead, telling their clients; send idle clients a heartbeat.

        Those that wait for room are given what there is, or told to ask again.

        If the broker was held up itself, it has yet to read what nodes sent meanwhile, and forgives
        that.
        """
        held_up_s = now - self._ticked_at - self._terms.heartbeat_ms / 1000
        self._ticked_at = now
        told: list[Send] = []
        if held_up_s > 0:
            self._registry.forgive(held_up_s)
        else:
            told += self._let_go_unanswered(now)
        for peer in self._registry.silent(now):
            told += self._lose_node(peer)
        verdicts = [*self._admission.overdue(now), *self._admission.room_was_made(now)]
        return [*told, *self._tell(verdicts, now), *self._beats(now)]

    def _let_go_unanswered(self, now: float) -> Iterator[Send]:
        """Let go of sessions whose node has not answered for so long that it would be dead.

        It was never asked, or its answer was lost, and nobody has asked again: a client that is
        still there may be waiting for the answer.
        """
        for session in self._routes.unanswered(now - self._terms.timeout_ms / 1000):
            route = self._end(session)
            if route.client is not None:
                reason = SessionLost("the node did not answer for the session")
                told = Frame.closing(reason, session).parts()
                yield Send(Side.CLIENTS, route.client, told)

    def _beats(self, now: float) -> Iterator[Send]:
        """Heartbeats to the clients that nothing was sent to for half the timeout.

        One that cannot be delivered is how the broker learns that a client is gone; a relayed frame
        tells it as well.
        """
        if now - self._beat_at < self._terms.timeout_ms / 2000:
            return
        beat = Frame.build(Kind.HEARTBEAT, Nothing()).parts()
        for client in self._routes.clients():
            if client not in self._addressed:
                yield Send(Side.CLIENTS, client, beat)
        self._beat_at = now
        self._addressed.clear()

    def refused(self, side: Side, peer: bytes, error: FedSeaError) -> Send:
        """The answer to a message that could not be taken apart."""
        self.counters.errors += 1
        return Send(side, peer, Frame.error(error, _NO_ENVELOPE).parts())

    def revoked(self, keys: Collection[bytes]) -> list[Send]:
        """The keys of these ids are trusted no more: end all that is theirs."""
        sends: list[Send] = []
        self._admission.revoked(keys)
        reason = NotTrusted("the session's key is not trusted any more")
        for session in self._routes.of_owners(keys):
            route = self._end(session)
            sends.append(self._close_on_node(route.node, session))
            if route.client is not None:
                told = Frame.closing(reason, session).parts()
                sends.append(Send(Side.CLIENTS, route.client, told))
        for peer in self._registry.of_owners(keys):
            sends += self._lose_node(peer)
        return sends

    def undelivered(self, side: Side, peer: bytes) -> list[Send]:
        """The peer is gone, or so slow that its queue is full: let go of it."""
        self.counters.errors += 1
        if side is Side.NODES:
            return self._lose_node(peer)
        orphans = self._routes.of_client(peer)
        return [self._close_on_node(self._end(i).node, i) for i in orphans]

    def _lose_node(self, peer: bytes) -> list[Send]:
        self._registry.drop(peer)
        reason = SessionLost("the node that held the session is gone")
        return [
            Send(Side.CLIENTS, route.client, Frame.closing(reason, session).parts())
            for session, route in self._routes.end_all_of(peer)
            if route.client is not None
        ]

    def _relay(self, side: Side, peer: bytes, parts: Sequence[Part]) -> Send:
        self.counters.frames_relayed += 1
        self.counters.bytes_relayed += sum(len(part) for part in parts)
        return Send(side, peer, parts)

    @staticmethod
    def _close_on_node(peer: bytes, session: bytes) -> Send:
        parts = Frame.build(Kind.CLOSE, Nothing(), session=session).parts()
        return Send(Side.NODES, peer, parts)

    def _status(self, envelope: Envelope, now: float) -> list[bytes]:
        if self._report is None or now - self._report[0] > _REPORT_S:
            report = StatusReport(
                uptime_s=now - self._started_at,
                sessions=len(self._routes),
                frames_relayed=self.counters.frames_relayed,
                bytes_relayed=self.counters.bytes_relayed,
                errors=self.counters.errors,
                nodes=self._registry.statuses(now),
            )
            self._report = (now, encode_body(report))
        return Frame(Envelope(Kind.STATUS_REPORT, seq=envelope.seq), self._report[1]).parts()


def _envelope(parts: Sequence[Part]) -> Envelope:
    if not 2 <= len(parts) <= MAX_PARTS:
        raise MalformedFrame(f"frame of {len(parts)} parts, expected 2 to {MAX_PARTS}")
    return Envelope.decode(bytes(parts[0]))


def _owners(offer: Register) -> Sequence[bytes]:
    """Whose each session of a registration is; nobody's, where the node does not say."""
    if offer.owners and len(offer.owners) != len(offer.sessions):
        raise MalformedFrame(f"{len(offer.sessions)} sessions of {len(offer.owners)} owners")
    return offer.owners or [b""] * len(offer.sessions)
