"""The trunk's side of every session: a pure core, frames and times in, actions out.

No socket, clock or tensor: the node that holds one does what the actions say, and a test or a
simulation can drive thousands of sessions through it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from fedsea_mq.errors import (
    Busy,
    FedSeaError,
    FingerprintMismatch,
    LimitExceeded,
    MalformedFrame,
    SessionNotYours,
    SessionUnknown,
    code_of,
)
from fedsea_mq.protocol.adapter_ref import AdapterRef, check_held
from fedsea_mq.protocol.comebacks import Comebacks
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.protocol.messages import Accept, Extend, Nothing, Open, Result
from fedsea_mq.protocol.payload import PayloadSpec
from fedsea_mq.protocol.positions import TrunkPositions, Verdict
from fedsea_mq.serving.scheduler import Owner, Urgency
from fedsea_mq.serving.session_events import OnEvent, SessionClosed, SessionOpened, unwatched

# Where frames come from and replies go to. Brokers have a byte, the first of them none; the
# connection of a client has `DIRECT` and then what its socket calls it.
BROKER: Final = b""
DIRECT: Final = b"direct:"


def of_broker(number: int) -> bytes:
    """Where frames of one of several brokers come from."""
    return bytes([number]) if number else BROKER


def is_direct(origin: bytes) -> bool:
    """Whether frames from there come past the brokers."""
    return origin.startswith(DIRECT)


# What a client may send past the broker: nothing that the broker must know of.
_MAY_BE_DIRECT: Final = frozenset({Kind.EXTEND, Kind.RENEW})


@dataclass(frozen=True, slots=True)
class TrunkTerms:
    """What a trunk node offers and bounds."""

    node: str
    fingerprint: str
    hidden: int
    kv_positions: int
    max_session_positions: int
    max_sessions: int
    max_frame_positions: int
    lease_s: float
    retry_after_s: float = 0.5
    direct: str | None = None
    direct_key: bytes | None = None
    adapters: Sequence[AdapterRef] = ()
    # The block that sessions ask for; None for the trunk's first.
    entry: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """Send these parts to a broker, or to a client's own connection."""

    parts: Parts
    to: bytes = BROKER


@dataclass(frozen=True, slots=True)
class Compute:
    """Run these positions through the blocks, then call `computed` or `failed`.

    `adapter` is the name of the one that the blocks are to be run with.
    """

    owner: Owner
    adapter: str | None
    envelope: Envelope
    body: Extend
    spec: PayloadSpec
    payload: Sequence[bytes]
    positions: TrunkPositions
    # What its session was opened with.
    trace: bytes | None


@dataclass(frozen=True, slots=True)
class Release:
    """Free the KV cache of this session."""

    session: bytes


Action = Reply | Compute | Release


@dataclass(frozen=True, slots=True)
class Peaks:
    """The most sessions, and the most KV positions that they had reserved, at any time."""

    sessions: int = 0
    kv_reserved: int = 0

    def and_(self, other: Peaks) -> Peaks:
        """The larger of each."""
        return Peaks(max(self.sessions, other.sessions), max(self.kv_reserved, other.kv_reserved))


@dataclass(slots=True)
class SessionCounters:
    """Totals since the node started."""

    opened: int = 0
    expired: int = 0
    busy: int = 0
    """Answers that told a client to come again later."""
    refused: Counter[str] = field(default_factory=Counter)
    """Frames refused for a fault of theirs, by the code of the error."""

    def refuse(self, error: FedSeaError) -> None:
        """A frame is answered with an error."""
        if isinstance(error, Busy):
            self.busy += 1
        else:
            self.refused[code_of(error)] += 1


@dataclass(slots=True)
class _Session:
    opened: Open
    spec: PayloadSpec
    positions: TrunkPositions
    lease_until: float
    # Where the newest extend frame came from, and its result goes to.
    heard_from: bytes
    # The broker that the client speaks by.
    broker: bytes
    # All brokers that know of the session, that one included.
    known_to: set[bytes]

    def owner(self, session: bytes) -> Owner:
        return Owner(self.opened.served, session, Urgency(self.opened.urgency))

    @property
    def adapter(self) -> str | None:
        return None if self.opened.adapter is None else self.opened.adapter.name


class TrunkSessions:
    """Every session of one trunk node, and what is left of its KV budget.

    `on_event` is told of sessions that are opened or over.
    """

    def __init__(self, terms: TrunkTerms, on_event: OnEvent = unwatched) -> None:
        self.terms = terms
        self._on_event = on_event
        self.counters = SessionCounters()
        self._sessions: dict[bytes, _Session] = {}
        self.kv_free = terms.kv_positions
        # For each broker, since it was told last.
        self._peaks: dict[bytes, Peaks] = {}
        # Since the beginning, for who was never told.
        self._most = Peaks()
        self.draining = False
        self._comebacks = Comebacks(soonest_s=terms.retry_after_s)

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def ids(self) -> list[bytes]:
        """The sessions held, for registration with a restarted broker."""
        return list(self._sessions)

    @property
    def owners(self) -> list[bytes]:
        """Whose each of them is, in the same order."""
        return [session.opened.client for session in self._sessions.values()]

    def broker_of(self, session_id: bytes) -> bytes | None:
        """The broker that a session's client speaks by; None, of one that is not held."""
        session = self._sessions.get(session_id)
        return None if session is None else session.broker

    def told_to(self, broker: bytes) -> None:
        """A broker is told of all sessions: it is to know when they are over."""
        for session in self._sessions.values():
            session.known_to.add(broker)

    @property
    def slots_free(self) -> int:
        """The sessions that could be opened now, as far as their number goes."""
        return 0 if self.draining else self.terms.max_sessions - len(self._sessions)

    @property
    def direct(self) -> int:
        """The sessions whose states come past the broker."""
        return sum(is_direct(session.heard_from) for session in self._sessions.values())

    def take_peaks(self, broker: bytes = BROKER) -> Peaks:
        """The most that was held at a time since this broker was told last."""
        peaks = self._peaks.get(broker, self._most)
        self._peaks[broker] = self._now()
        return peaks

    def _now(self) -> Peaks:
        return Peaks(len(self._sessions), self.terms.kv_positions - self.kv_free)

    def receive(
        self, frame: Frame, now: float, origin: bytes = BROKER, sender: bytes = b""
    ) -> list[Action]:
        """Handle a client's frame, which came from `origin`, where the answer goes to.

        `sender` is the id of the key that it came with, past the broker, if keys are in use there.
        Every fault becomes a typed error reply; none is raised.
        """
        try:
            if is_direct(origin) and frame.envelope.kind not in _MAY_BE_DIRECT:
                raise MalformedFrame(f"a {frame.envelope.kind.name} frame past the broker")
            self._check_owner(frame.envelope.session, sender)
            return self._dispatch(frame, now, origin)
        except FedSeaError as error:
            self.counters.refuse(error)
            return [Reply(Frame.error(error, frame.envelope).parts(), origin)]

    def _check_owner(self, session_id: bytes, sender: bytes) -> None:
        session = self._sessions.get(session_id)
        if sender and session is not None and session.opened.client != sender:
            raise SessionNotYours("the session was opened with another key")

    def _dispatch(self, frame: Frame, now: float, origin: bytes) -> list[Action]:
        match frame.envelope.kind:
            case Kind.OPEN:
                return self._open(frame, now, origin)
            case Kind.EXTEND:
                return self._extend(frame, now, origin)
            case Kind.RENEW:
                self._find(frame, now, origin)
                return [self._reply(frame.envelope, Kind.RENEWED, Nothing(), origin)]
            case Kind.CLOSE:
                return self._closed(frame.envelope, origin)
            case kind:
                raise MalformedFrame(f"a {kind.name} frame is not for a trunk node")

    def _open(self, frame: Frame, now: float, origin: bytes) -> list[Action]:
        if not frame.envelope.session:
            raise MalformedFrame("an open frame without a session id")
        asked = frame.body(Open)
        held = self._sessions.get(frame.envelope.session)
        if held is None:
            self._admit(asked, now)
            self._sessions[frame.envelope.session] = _Session(
                asked,
                PayloadSpec(asked.dtype, self.terms.hidden),
                TrunkPositions(asked.max_positions, self.terms.max_frame_positions),
                now + self.terms.lease_s,
                origin,
                origin,
                {origin},
            )
            self.kv_free -= asked.max_positions
            self.counters.opened += 1
            self._on_event(SessionOpened(frame.envelope.session, asked.trace, asked.max_positions))
            now_held = self._now()
            self._most = self._most.and_(now_held)
            self._peaks = {who: peaks.and_(now_held) for who, peaks in self._peaks.items()}
        elif held.opened.as_asked != asked.as_asked:
            raise MalformedFrame("the session is open already, on other terms")
        terms = Accept(
            node=self.terms.node,
            max_frame_positions=self.terms.max_frame_positions,
            lease_ms=round(self.terms.lease_s * 1000),
            direct=self.terms.direct,
            direct_key=self.terms.direct_key,
        )
        return [self._reply(frame.envelope, Kind.ACCEPT, terms, origin)]

    def _admit(self, asked: Open, now: float) -> None:
        terms = self.terms
        if asked.fingerprint != terms.fingerprint:
            raise FingerprintMismatch(
                f"the client holds {asked.fingerprint[:12]}, "
                f"node {terms.node} serves {terms.fingerprint[:12]}"
            )
        if asked.entry != terms.entry:
            raise FingerprintMismatch(f"node {terms.node} does not begin at the block asked for")
        if asked.adapter is not None:
            check_held(asked.adapter, terms.adapters)
        most = min(terms.max_session_positions, terms.kv_positions)
        if not 1 <= asked.max_positions <= most:
            raise LimitExceeded(
                f"a session of {asked.max_positions} positions, this node holds 1 to {most}"
            )
        if self.draining:
            raise Busy(f"node {terms.node} takes no new sessions", self._comebacks.pause_s(now))
        if not self.slots_free or asked.max_positions > self.kv_free:
            raise Busy(f"node {terms.node} has no room now", self._comebacks.pause_s(now))

    def _extend(self, frame: Frame, now: float, origin: bytes) -> list[Action]:
        session = self._find(frame, now, origin)
        body = frame.body(Extend)
        session.spec.check(frame.payload, body.count)
        verdict = session.positions.receive(body, frame.payload, frame.envelope.seq)
        # A client that sends again by another way has lost its trust in the one before.
        session.heard_from = origin
        match verdict:
            case Verdict.APPLY:
                return [
                    Compute(
                        session.owner(frame.envelope.session),
                        session.adapter,
                        frame.envelope,
                        body,
                        session.spec,
                        frame.payload,
                        session.positions,
                        session.opened.trace,
                    )
                ]
            case Verdict.REPLAY:
                return [Reply(_readdress(session.positions.reply, frame.envelope), origin)]
            case Verdict.IN_FLIGHT:
                return []

    def computed(self, work: Compute, payload: Sequence[bytes]) -> list[Action]:
        """The outputs of `work`, already encoded: the reply, unless the session is gone."""
        session = self._holder(work)
        if session is None:
            return []
        body = Result(cached=work.body.cached + work.body.count, returned=work.body.returned)
        reply = Frame.build(
            Kind.RESULT,
            body,
            session=work.envelope.session,
            seq=work.envelope.seq,
            payload=payload,
        ).parts()
        work.positions.applied(reply)
        return [Reply(reply, session.heard_from)]

    def failed(self, work: Compute, error: FedSeaError) -> list[Action]:
        """`work` was not computed: the client is told why, and may send it again."""
        session = self._holder(work)
        if session is None:
            return []
        work.positions.failed()
        return [Reply(Frame.error(error, work.envelope).parts(), session.heard_from)]

    def _holder(self, work: Compute) -> _Session | None:
        """The session that the work began for, if it still is: ids can be used again."""
        session = self._sessions.get(work.envelope.session)
        return session if session is not None and session.positions is work.positions else None

    def _closed(self, envelope: Envelope, origin: bytes) -> list[Action]:
        session = self._sessions.get(envelope.session)
        if session is None or (origin != session.broker and not envelope.seq):
            # A broker by which the client does not speak any more has lost the client, and no more:
            # it does not end what goes on by another. A client's own word has a number.
            return []
        return self._close(envelope.session, session, origin)

    def _close(
        self, session_id: bytes, session: _Session, said_by: bytes, *, expired: bool = False
    ) -> list[Action]:
        """End a session, and tell the brokers that know of it but for who said so."""
        del self._sessions[session_id]
        self.kv_free += session.opened.max_positions
        self._on_event(SessionClosed(session_id, session.opened.trace, expired))
        over = Frame.build(Kind.CLOSE, Nothing(), session=session_id).parts()
        others = sorted(session.known_to - {said_by})
        return [Release(session_id), *(Reply(over, broker) for broker in others)]

    def expire(self, now: float) -> list[Action]:
        """Close every session whose lease ran out and tell its client, should it still be there."""
        actions: list[Action] = []
        for session_id, session in list(self._sessions.items()):
            if session.lease_until <= now:
                self.counters.expired += 1
                actions += self._close(session_id, session, session.broker, expired=True)
                gone = SessionUnknown("the session's lease ran out")
                actions.append(Reply(Frame.closing(gone, session_id).parts(), session.broker))
        return actions

    def _find(self, frame: Frame, now: float, origin: bytes) -> _Session:
        session = self._sessions.get(frame.envelope.session)
        if session is None:
            raise SessionUnknown("no such session on this node")
        # Whoever sends copies need not be its client.
        if not frame.again:
            session.lease_until = now + self.terms.lease_s
            session.broker = session.broker if is_direct(origin) else origin
        if not is_direct(origin):
            session.known_to.add(origin)
        return session

    @staticmethod
    def _reply(envelope: Envelope, kind: Kind, body: Accept | Nothing, to: bytes) -> Reply:
        frame = Frame.build(kind, body, session=envelope.session, seq=envelope.seq)
        return Reply(frame.parts(), to)


def _readdress(reply: Parts, envelope: Envelope) -> Parts:
    """A stored reply under the sequence number of the request that asked for it again."""
    again = Envelope(Kind.RESULT, envelope.session, envelope.seq)
    return [again.encode(), *reply[1:]]
