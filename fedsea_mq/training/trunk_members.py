"""The training sessions of a trunk: who has enlisted, until when. Pure.

A session is one client's, by its name in the run, or the aggregator's, which has none. There is one
session a name: who enlists anew takes the place of what it was before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedsea_mq.errors import (
    Busy,
    FingerprintMismatch,
    MalformedFrame,
    RunMismatch,
    RunUnknown,
    SessionUnknown,
)
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.comebacks import Comebacks
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Accept
from fedsea_mq.protocol.payload import PayloadSpec
from fedsea_mq.protocol.training_messages import Enlist
from fedsea_mq.run_settings import Strategy
from fedsea_mq.serving.trunk_sessions import Reply


@dataclass(frozen=True, slots=True)
class TrainingTerms:
    """What a trunk node offers to a run, and bounds.

    `max_positions` are those of all passes that wait for their gradient: of one attempt's members,
    each may hold an equal part.
    """

    node: str
    run: str
    fingerprint: str
    agreed: str
    hidden: int
    strategy: Strategy
    max_positions: int
    max_sessions: int
    lease_s: float
    patience_s: float


@dataclass(slots=True)
class TrainingSession:
    """One party's session."""

    id: bytes
    enlisted: Enlist
    spec: PayloadSpec
    lease_until: float

    @property
    def member(self) -> str | None:
        """The client's name in the run; None is the aggregator."""
        return self.enlisted.member


class TrainingSessions:
    """Every training session of a trunk node."""

    def __init__(self, terms: TrainingTerms) -> None:
        self._terms = terms
        self._sessions: dict[bytes, TrainingSession] = {}
        self._by_member: dict[str | None, TrainingSession] = {}
        self._comebacks = Comebacks()
        self.draining = False

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session: bytes) -> bool:
        return session in self._sessions

    @property
    def ids(self) -> list[bytes]:
        """The sessions held, for registration with a restarted broker."""
        return list(self._sessions)

    def enlist(self, frame: Frame, now: float) -> tuple[Reply, TrainingSession | None]:
        """Take a party in: the answer, and the session whose place it takes.

        Raises:
            RunUnknown, RunMismatch, FingerprintMismatch: it is not of this run.
            Busy: the node takes no more sessions.
        """
        asked, session = frame.body(Enlist), frame.envelope.session
        if not session:
            raise MalformedFrame("an enlist frame without a session id")
        held, replaced = self._sessions.get(session), None
        if held is None:
            self._check(asked)
            replaced = self._by_member.get(asked.member)
            self._admit(replaced, now)
            if replaced is not None:
                self.close(replaced.id)
            spec = PayloadSpec(asked.dtype, self._terms.hidden)
            held = TrainingSession(session, asked, spec, now + self._terms.lease_s)
            self._sessions[session] = self._by_member[asked.member] = held
        elif replace(held.enlisted, client=asked.client) != asked:
            raise MalformedFrame("the session is enlisted already, on other terms")
        accept = Accept(
            node=self._terms.node,
            max_frame_positions=self._terms.max_positions,
            lease_ms=round(self._terms.lease_s * 1000),
        )
        reply = Frame.build(Kind.ACCEPT, accept, session=session, seq=frame.envelope.seq)
        return Reply(reply.parts()), replaced

    def _check(self, asked: Enlist) -> None:
        terms = self._terms
        if (asked.role, asked.run) != (Role.TRUNK, terms.run):
            raise RunUnknown(f"node {terms.node} is the trunk of run {terms.run}")
        if asked.fingerprint != terms.fingerprint:
            raise FingerprintMismatch(
                f"the party holds {asked.fingerprint[:12]}, "
                f"node {terms.node} trains {terms.fingerprint[:12]}"
            )
        if asked.agreed != terms.agreed:
            raise RunMismatch(
                f"the party's settings of run {terms.run} are {asked.agreed[:12]}, "
                f"those of node {terms.node} {terms.agreed[:12]}: strategy, seed, lora, federation"
            )

    def _admit(self, replaced: TrainingSession | None, now: float) -> None:
        full = replaced is None and len(self) >= self._terms.max_sessions
        if self.draining or full:
            pause_s = self._comebacks.pause_s(now)
            raise Busy(f"node {self._terms.node} takes no new sessions", pause_s)

    def find(self, envelope: Envelope, now: float) -> TrainingSession:
        """The session of a frame, whose lease it renews. Raises `SessionUnknown`."""
        session = self._sessions.get(envelope.session)
        if session is None:
            raise SessionUnknown("no such training session on this node")
        session.lease_until = now + self._terms.lease_s
        return session

    def of(self, member: str) -> TrainingSession | None:
        """The session of a member, if it has one."""
        return self._by_member.get(member)

    def close(self, session: bytes) -> TrainingSession | None:
        """End a session; what it was, if it was there."""
        closed = self._sessions.pop(session, None)
        if closed is not None:
            del self._by_member[closed.member]
        return closed

    def expire(self, now: float) -> list[TrainingSession]:
        """End every session whose lease ran out, and return them."""
        late = [one.id for one in self._sessions.values() if one.lease_until <= now]
        return [closed for session in late if (closed := self.close(session)) is not None]
