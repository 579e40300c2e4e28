"""What the aggregator does with each frame, result and moment: actions. No socket, clock or tensor.

A request that there is nothing to say to yet is held; it is answered as soon as there is, or with
`WAIT` after a while. The same request again is answered again, and nothing is counted twice.

A member that comes back with a new session, as after a restart, has lost what it did in the present
attempt, and the trunk has let go of it: it is excused from it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final

from fedsea_mq.errors import (
    AttemptOver,
    FedSeaError,
    MalformedFrame,
    SessionUnknown,
    UpdateRefused,
)
from fedsea_mq.protocol.bounded import MIN_PAUSE_MS
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Accept, Body, Nothing
from fedsea_mq.protocol.training_messages import (
    Ask,
    Duty,
    Enlist,
    Fate,
    Secure,
    Secured,
    Task,
    Update,
    Updated,
)
from fedsea_mq.training.aggregation.actions import (
    Action,
    AddMasked,
    AddUpdate,
    Averaged,
    Checked,
    CheckUpdate,
    Reply,
    Report,
)
from fedsea_mq.training.aggregation.attempt import Attempt, Said
from fedsea_mq.training.aggregation.course import RunCourse
from fedsea_mq.training.aggregation.duties import Answer, duty_of, next_of
from fedsea_mq.training.aggregation.members import POLL_S, Members, MemberSession, Poll, RunTerms
from fedsea_mq.training.aggregation.reports import (
    MemberJoined,
    MemberLeft,
    UpdateCounted,
    UpdateTurnedAway,
)
from fedsea_mq.training.aggregation.secure_stages import SecureRules
from fedsea_mq.training.enlisted import replaced_by_another
from fedsea_mq.training.rounds import Phase, Rounds

_VECTOR_ITEM_BYTES: Final = 4
_WAIT: Final[Answer] = (Task(Duty.WAIT, again_ms=MIN_PAUSE_MS), [])
_LAST_DUTIES: Final = frozenset({Duty.FINISH, Duty.GIVE_UP})


class Aggregation:
    """The whole state of an aggregator; updates are vectors of `elements` fp32 numbers."""

    def __init__(
        self,
        terms: RunTerms,
        rounds: Rounds,
        elements: int,
        secure: SecureRules | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """With `secure` rules, updates come masked. `entropy` exists for tests."""
        self.members = Members(terms)
        self._course = RunCourse(rounds, secure, entropy)
        self._update_bytes = 0 if secure is not None else elements * _VECTOR_ITEM_BYTES
        self._masked = secure is not None
        # Who has been told that the run is over.
        self._told: set[str] = set()

    @property
    def phase(self) -> Phase:
        """What the rounds are doing."""
        return self._course.rounds.phase

    @property
    def over(self) -> bool:
        """Whether the run has finished, and all is written, or was given up."""
        return self._course.over

    @property
    def untold(self) -> frozenset[str]:
        """Members, present or known from the rounds, that have yet to hear that the run is over."""
        known = {client.decode() for client in self._course.rounds.progress.last_turn}
        return frozenset(known | {session.member for session in self.members}) - self._told

    def begin(self, shared: bytes, attempt: bytes) -> list[Action]:
        """Go on from these shared adapters, which came out of this attempt if there was one.

        Called once, before anything else.
        """
        return self._course.begin(shared, attempt)

    def receive(self, frame: Frame, now: float) -> list[Action]:
        """Handle a client's frame. Every fault becomes a typed error reply; none is raised."""
        actions = self.tick(now)
        try:
            actions += self._dispatch(frame, now)
        except FedSeaError as error:
            actions.append(Reply(Frame.error(error, frame.envelope).parts()))
        return self._settled(actions, now)

    def tick(self, now: float) -> list[Action]:
        """What is due by now."""
        actions: list[Action] = []
        for session in self.members.expire(now):
            gone = SessionUnknown("the session's lease ran out")
            actions.append(Reply(Frame.closing(gone, session.id).parts()))
            actions += self._left(session, now)
        return self._settled(actions, now)

    def _settled(self, actions: list[Action], now: float) -> list[Action]:
        """These, what follows from them by now, and answers to whoever waits."""
        actions += self._course.tick(now)
        for session in self.members:
            actions += self._answer(session, now)
        return actions

    def _dispatch(self, frame: Frame, now: float) -> list[Action]:
        match frame.envelope.kind:
            case Kind.ENLIST:
                return self._enlist(frame, now)
            case Kind.RENEW:
                self.members.find(frame, now)
                return [_reply(frame.envelope, Kind.RENEWED, Nothing())]
            case Kind.CLOSE:
                session = self.members.close(frame.envelope.session)
                return [] if session is None else self._left(session, now)
            case Kind.ASK:
                return self._ask(frame, now)
            case Kind.UPDATE:
                return self._update(frame, now)
            case Kind.SECURE:
                return self._secure(frame, now)
            case kind:
                raise MalformedFrame(f"a {kind.name} frame is not for an aggregator")

    def _enlist(self, frame: Frame, now: float) -> list[Action]:
        asked = frame.body(Enlist)
        known = frame.envelope.session in self.members
        replaced = self.members.enlist(frame.envelope.session, asked, now)
        session = self.members.find(frame, now)
        terms = self.members.terms
        accept = Accept(terms.node, max_frame_positions=1, lease_ms=round(terms.lease_s * 1000))
        actions: list[Action] = [_reply(frame.envelope, Kind.ACCEPT, accept)]
        if replaced is not None:
            reason = replaced_by_another(replaced)
            actions.append(Reply(Frame.closing(reason, replaced.id).parts()))
            actions += self._left(replaced, now)
        attempt = self._course.attempt
        # One that masks may have lost no more than its session.
        trained = (
            attempt is not None and attempt.secure is None and session.member in attempt.tasked
        )
        if not known and trained:
            actions += self._course.excuse(session.member, "it has come back", now)
        return actions

    def _left(self, session: MemberSession, now: float) -> list[Action]:
        left = self._course.leave(session.member, now)
        return [Report(MemberLeft(session.member)), *left]

    def _ask(self, frame: Frame, now: float) -> list[Action]:
        session = self.members.find(frame, now)
        asked = frame.body(Ask)
        actions = self._course.join(session.member, now)
        if not session.samples:
            actions.append(Report(MemberJoined(session.member, asked.samples)))
        session.samples = asked.samples
        if asked.failed is not None and self._course.present(asked.failed) is not None:
            actions += self._course.excuse(session.member, "it says so", now)
        session.hold(Poll(frame.envelope, now + POLL_S))
        return actions

    def _update(self, frame: Frame, now: float) -> list[Action]:
        session = self.members.find(frame, now)
        body = frame.body(Update)
        attempt = self._course.present(body.attempt)
        if attempt is not None and session.member in attempt.checking:
            return []  # the answer is on its way
        fate = self._course.fate(session.member, body.attempt)
        if fate is not None or attempt is None:
            return [_reply(frame.envelope, Kind.UPDATED, Updated(fate or Fate.LATE))]
        work = CheckUpdate(frame.envelope, session.member, body, frame.payload)
        if error := self._wrong(body, frame.payload):
            return self._turn_away(work, attempt, error, now)
        if self._masked:
            return self._count(work, attempt, None, now)
        attempt.checking.add(session.member)
        return [work]

    def _wrong(self, body: Update, payload: Sequence[bytes]) -> UpdateRefused | None:
        """What is seen of an update without reading its numbers."""
        expected = [self._update_bytes] if self._update_bytes else []
        if (came := [len(part) for part in payload]) != expected:
            return UpdateRefused(f"update in parts of {came} bytes, expected {expected}")
        if (body.weight == 0) != self._masked:
            return UpdateRefused("weight is 0 where updates are masked, and there only")
        return None

    def _turn_away(
        self, work: CheckUpdate, attempt: Attempt, error: UpdateRefused, now: float
    ) -> list[Action]:
        of = attempt.round
        return [
            Report(UpdateTurnedAway(of.number, of.attempt, work.member, str(error))),
            Reply(Frame.error(error, work.envelope).parts()),
            *self._course.excuse(work.member, "its update was refused", now),
        ]

    def checked(
        self, work: CheckUpdate, outcome: Checked | UpdateRefused, now: float
    ) -> list[Action]:
        """What became of `CheckUpdate`."""
        actions = self.tick(now)
        attempt = self._course.present(work.body.attempt)
        if attempt is None:
            actions.append(_reply(work.envelope, Kind.UPDATED, Updated(Fate.LATE)))
        else:
            attempt.checking.discard(work.member)
            if isinstance(outcome, UpdateRefused):
                actions += self._turn_away(work, attempt, outcome, now)
            else:
                actions += self._count(work, attempt, outcome, now)
        return self._settled(actions, now)

    def _count(
        self, work: CheckUpdate, attempt: Attempt, checked: Checked | None, now: float
    ) -> list[Action]:
        """Count an update, which is masked where there is none that was checked."""
        session = self.members.of(work.member)
        samples = work.body.weight or (session.samples if session is not None else 1)
        said = Said(samples, work.body.loss)
        counted, follows = self._course.count(work.member, attempt, said, now)
        if not counted:
            return [_reply(work.envelope, Kind.UPDATED, Updated(Fate.LATE)), *follows]
        of = attempt.round
        event = UpdateCounted(
            round=of.number,
            attempt=of.attempt,
            member=work.member,
            weight=samples,
            loss=work.body.loss,
            norm=None if checked is None else checked.norm,
            clipped=checked is not None and checked.clipped,
        )
        actions: list[Action] = [Report(event)]
        if checked is not None:
            actions.append(AddUpdate(attempt.id, checked.update, work.body.weight))
        actions.append(_reply(work.envelope, Kind.UPDATED, Updated(Fate.COUNTED)))
        return actions + follows

    def _secure(self, frame: Frame, now: float) -> list[Action]:
        session = self.members.find(frame, now)
        body = frame.body(Secure)
        stages = self._course.stages(body.attempt)
        number = None if stages is None else stages.number_of(session.member)
        if stages is None or number is None:
            raise AttemptOver("no secure aggregation of this attempt with this member")
        if len(frame.payload) not in (1, 2):
            raise MalformedFrame(f"{len(frame.payload)} parts, expected a record or one and more")
        record, vector = frame.payload[0], b"".join(frame.payload[1:])
        masked = stages.receive(number, record, vector)
        session.hold(Poll(frame.envelope, now + POLL_S, body.attempt))
        if masked is None:
            return []
        return [
            AddMasked(
                frame.envelope, body.attempt, stages.server, number, masked.message, masked.vector
            )
        ]

    def masked(self, work: AddMasked, error: FedSeaError | None, now: float) -> list[Action]:
        """What became of `AddMasked`."""
        actions = self.tick(now)
        attempt = self._course.present(work.attempt)
        if attempt is not None and attempt.secure is not None:
            attempt.secure.added(work.number, refused=error is not None)
        if error is not None:
            actions.append(Reply(Frame.error(error, work.envelope).parts()))
        return self._settled(actions, now)

    def averaged(self, attempt: bytes, outcome: Averaged | FedSeaError, now: float) -> list[Action]:
        """What became of `Average`."""
        actions = self.tick(now)
        if isinstance(outcome, FedSeaError):
            actions += self._course.void(attempt, f"no mean: {outcome}", now)
        else:
            actions += self._course.averaged(attempt, outcome)
        return self._settled(actions, now)

    def trunk_began(self, attempt: bytes, now: float) -> list[Action]:
        """The trunk has begun this attempt."""
        return self._settled(self.tick(now) + self._course.trunk_began(attempt), now)

    def trunk_ended(self, attempt: bytes, now: float) -> list[Action]:
        """The trunk has ended this attempt, and saved."""
        return self._settled(self.tick(now) + self._course.trunk_ended(attempt, now), now)

    def trunk_failed(self, attempt: bytes, reason: str, now: float) -> list[Action]:
        """The trunk cannot do what this attempt needs."""
        return self._settled(self.tick(now) + self._course.void(attempt, reason, now), now)

    def trunk_lost(self, now: float) -> list[Action]:
        """The session with the trunk is over."""
        return self._settled(self.tick(now) + self._course.trunk_lost(now), now)

    def saved(self, now: float) -> list[Action]:
        """What became of `Save`."""
        return self._settled(self.tick(now) + self._course.saved(), now)

    def _answer(self, session: MemberSession, now: float) -> list[Action]:
        poll = session.poll
        if poll is None:
            return []
        answer: Answer | AttemptOver | None
        if poll.attempt is None:
            answer = duty_of(self._course, session.member)
        else:
            answer = next_of(self._course, session.member, poll.attempt)
        if answer is None:
            if now < poll.until:
                return []
            # To be asked or said again.
            answer = _WAIT if poll.attempt is None else (Secured(poll.attempt), [])
        session.poll = None
        if isinstance(answer, FedSeaError):
            return [Reply(Frame.error(answer, poll.envelope).parts())]
        body, payload = answer
        if isinstance(body, Secured):
            return [_reply(poll.envelope, Kind.SECURED, body, payload)]
        if body.duty in _LAST_DUTIES:
            self._told.add(session.member)
        return [_reply(poll.envelope, Kind.TASK, body, payload)]


def _reply(envelope: Envelope, kind: Kind, body: Body, payload: Sequence[bytes] = ()) -> Reply:
    frame = Frame.build(kind, body, session=envelope.session, seq=envelope.seq, payload=payload)
    return Reply(frame.parts())
