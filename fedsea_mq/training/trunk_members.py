"""The training sessions of a trunk: clients by their names in the run, and the aggregator. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from fedsea_mq.errors import Busy
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.comebacks import Comebacks
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Accept
from fedsea_mq.protocol.payload import PayloadSpec
from fedsea_mq.protocol.training_messages import Enlist
from fedsea_mq.run_settings import Strategy
from fedsea_mq.serving.trunk_sessions import Reply
from fedsea_mq.training.enlisted import EnlistedSessions, check_of_run


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


class TrainingSessions(EnlistedSessions[TrainingSession]):
    """Every training session of a trunk node."""

    def __init__(self, terms: TrainingTerms) -> None:
        super().__init__(terms.lease_s)
        self._terms = terms
        self._comebacks = Comebacks()
        self.draining = False

    def enlist(self, frame: Frame, now: float) -> tuple[Reply, TrainingSession | None]:
        """Take a party in: the answer, and the session whose place it takes.

        Raises:
            RunUnknown, RunMismatch, FingerprintMismatch: it is not of this run.
            MalformedFrame: no session id, or a session on other terms.
            Busy: the node takes no more sessions.
        """
        asked, session = frame.body(Enlist), frame.envelope.session
        replaced = None
        if not self.held(session, asked):
            check_of_run(asked, Role.TRUNK, self._terms)
            replaced = self.of(asked.member)
            self._admit(replaced, now)
            if replaced is not None:
                self.close(replaced.id)
            spec = PayloadSpec(asked.dtype, self._terms.hidden)
            self.take(TrainingSession(session, asked, spec, now + self.lease_s))
        accept = Accept(
            node=self._terms.node,
            max_frame_positions=self._terms.max_positions,
            lease_ms=round(self.lease_s * 1000),
        )
        reply = Frame.build(Kind.ACCEPT, accept, session=session, seq=frame.envelope.seq)
        return Reply(reply.parts()), replaced

    def _admit(self, replaced: TrainingSession | None, now: float) -> None:
        full = replaced is None and len(self) >= self._terms.max_sessions
        if self.draining or full:
            pause_s = self._comebacks.pause_s(now)
            raise Busy(f"node {self._terms.node} takes no new sessions", pause_s)
