"""The trunk's side of training: a pure core, frames and times in, actions out.

The aggregator opens an attempt at a round; its members send batches, gradients and steps; when the
round is over the aggregator has the trunk average and save. What is joined with what is the rule of
the strategy (`gathering`). No socket, clock or tensor: the node that holds one does what the
actions say, one piece of work at a time, and tells with `done` what came of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fedsea_mq.errors import (
    AttemptOver,
    FedSeaError,
    MalformedFrame,
    OutOfTurn,
    SessionUnknown,
)
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Nothing
from fedsea_mq.protocol.training_messages import (
    Backward,
    BeginRound,
    EndRound,
    Forward,
    RoundState,
    Step,
)
from fedsea_mq.serving.trunk_sessions import Reply
from fedsea_mq.training.attempt import Attempt
from fedsea_mq.training.enlisted import replaced_by_another
from fedsea_mq.training.member_frames import MemberFrames, read
from fedsea_mq.training.outcomes import refusal, reply, told
from fedsea_mq.training.trunk_members import TrainingSession, TrainingSessions, TrainingTerms
from fedsea_mq.training.trunk_work import NotFinite, Outcome, Restore, Save, Work

Action = Reply | Work

# Attempts that are over and are still known as such, should a late copy begin one again.
_PAST_ATTEMPTS: Final = 64


@dataclass(slots=True)
class _Order:
    """What the aggregator has asked for last; `envelope` is that of the newest copy."""

    envelope: Envelope
    body: BeginRound | EndRound
    done: bool = False

    def answer(self) -> Reply:
        """Where the trunk stands now that it is done."""
        ended = isinstance(self.body, EndRound)
        state = RoundState(self.body.round + ended, self.body.attempt)
        return reply(self.envelope, Kind.ROUND_STATE, state)


class TrunkRounds:
    """Sessions, the attempt that is open, and the work that is under way."""

    def __init__(self, terms: TrainingTerms) -> None:
        self.sessions = TrainingSessions(terms)
        self._terms = terms
        self._attempt: Attempt | None = None
        self._begin: _Order | None = None
        self._end: _Order | None = None
        self._past: deque[bytes] = deque(maxlen=_PAST_ATTEMPTS)
        self._running: Work | None = None

    def receive(self, frame: Frame, now: float) -> list[Action]:
        """Handle a party's frame. Every fault becomes a typed error reply; none is raised."""
        try:
            return [*self._dispatch(frame, now), *self._go()]
        except FedSeaError as error:
            return [Reply(Frame.error(error, frame.envelope).parts())]

    def _dispatch(self, frame: Frame, now: float) -> Sequence[Action]:
        envelope = frame.envelope
        if envelope.kind is Kind.ENLIST:
            return self._enlist(frame, now)
        if envelope.kind is Kind.CLOSE:
            closed = self.sessions.close(envelope.session)
            if closed is not None:
                self._left(closed)
            return []
        session = self.sessions.find(frame, now)
        if envelope.kind is Kind.RENEW:
            return [reply(envelope, Kind.RENEWED, Nothing())]
        if session.member is None:
            return self._from_aggregator(frame)
        return self._from_member(frame, session, now)

    def _enlist(self, frame: Frame, now: float) -> Sequence[Action]:
        accepted, replaced = self.sessions.enlist(frame, now)
        if replaced is None:
            return [accepted]
        self._left(replaced)
        reason = replaced_by_another(replaced)
        return [Reply(Frame.closing(reason, replaced.id).parts()), accepted]

    def _from_member(self, frame: Frame, session: TrainingSession, now: float) -> Sequence[Reply]:
        body, attempt = read(frame), self._attempt
        if attempt is None or attempt.id != body.attempt or self._end is not None:
            raise AttemptOver("the attempt is not open")
        if attempt.begun_at is None:
            raise AttemptOver("the attempt has not begun")
        member = attempt.member(session.member)
        frames = MemberFrames(attempt, member, session.spec, self._terms.max_positions)
        match body:
            case Forward():
                return frames.forward(frame, body, now)
            case Backward():
                return frames.backward(frame, body, now)
            case Step():
                return frames.step(frame, body, now)

    def _from_aggregator(self, frame: Frame) -> Sequence[Reply]:
        match frame.envelope.kind:
            case Kind.BEGIN_ROUND:
                return self._begin_round(frame.envelope, frame.body(BeginRound))
            case Kind.END_ROUND:
                return self._end_round(frame.envelope, frame.body(EndRound))
            case kind:
                raise MalformedFrame(f"a {kind.name} frame is not for an aggregator to send")

    def _begin_round(self, envelope: Envelope, body: BeginRound) -> Sequence[Reply]:
        if self._begin is not None and self._begin.body.attempt == body.attempt:
            return _again(self._begin, envelope, body)
        if body.attempt in self._past:
            raise AttemptOver("this attempt was begun before, and is over")
        self._void()
        self._attempt = Attempt(body, self._terms.strategy)
        self._begin = _Order(envelope, body)
        return []

    def _end_round(self, envelope: Envelope, body: EndRound) -> Sequence[Reply]:
        attempt = self._attempt
        if attempt is None or attempt.id != body.attempt or attempt.begun_at is None:
            raise AttemptOver("no such attempt is open")
        if self._end is not None:
            return _again(self._end, envelope, body)
        if body.round != attempt.begin.round or not set(body.counted) <= attempt.members.keys():
            raise OutOfTurn("the end of another round, or of members that were not in it")
        self._end = _Order(envelope, body)
        return []

    def _void(self) -> None:
        """Whatever the attempt has under way counts no more."""
        if self._attempt is not None:
            self._past.append(self._attempt.id)
        self._attempt = self._begin = self._end = None

    def _left(self, session: TrainingSession) -> None:
        """A session is over: its member is out of the attempt, if it was in."""
        if self._attempt is not None and session.member in self._attempt.members:
            self._attempt.leave(self._attempt.members[session.member])

    def expire(self, now: float) -> list[Action]:
        """Close sessions whose lease ran out; go on without members that others wait for."""
        actions: list[Action] = []
        for session in self.sessions.expire(now):
            self._left(session)
            gone = SessionUnknown("the session's lease ran out")
            actions.append(Reply(Frame.closing(gone, session.id).parts()))
        if self._attempt is not None:
            for member in list(self._attempt.late(now, self._terms.patience_s, self._is_here)):
                self._attempt.leave(member)
        return [*actions, *self._go()]

    def _is_here(self, member: str) -> bool:
        return self.sessions.of(member) is not None

    def _go(self) -> list[Work]:
        """The next piece of work, if none is under way and one is ready."""
        if self._running is not None:
            return []
        self._running = self._next()
        return [] if self._running is None else [self._running]

    def _next(self) -> Work | None:
        attempt, end = self._attempt, self._end
        if attempt is None:
            return None
        if attempt.begun_at is None:
            return attempt.restore()
        if end is None:
            return attempt.next()
        assert isinstance(end.body, EndRound)
        return None if end.done else attempt.save(end.body.counted)

    def done(self, work: Work, outcome: Outcome, now: float) -> list[Action]:
        """What came of the work that was under way: replies, and the next."""
        assert work is self._running
        self._running = None
        actions: list[Action] = []
        if self._attempt is not None and self._attempt.id == work.attempt:
            actions += self._told(self._attempt, work, outcome, now)
        return [*actions, *self._go()]

    def _told(self, attempt: Attempt, work: Work, outcome: Outcome, now: float) -> Iterator[Reply]:
        if not isinstance(work, Restore | Save):
            yield from told(attempt, work, outcome, now)
            return
        order = self._begin if isinstance(work, Restore) else self._end
        assert order is not None
        if isinstance(outcome, NotFinite | Exception):
            self._void()
            yield refusal(order.envelope, "the trunk does not stand before the round", outcome)
            return
        if isinstance(work, Restore):
            attempt.begun_at = now
        order.done = True
        yield order.answer()


def _again(order: _Order, envelope: Envelope, body: BeginRound | EndRound) -> list[Reply]:
    """A copy of an order: its answer, if there is one already."""
    if order.body != body:
        raise OutOfTurn("the same attempt, on other terms")
    order.envelope = envelope
    return [order.answer()] if order.done else []
