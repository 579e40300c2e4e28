"""What members send in an attempt: checked, told from copies, and put where it waits. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fedsea_mq.errors import Busy, LimitExceeded, MalformedFrame, OutOfTurn
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.payload import PayloadSpec
from fedsea_mq.protocol.training_messages import Backward, Forward, Step, Stepped
from fedsea_mq.serving.trunk_sessions import Reply
from fedsea_mq.training.attempt import Attempt
from fedsea_mq.training.gathering import Asked, Member
from fedsea_mq.training.trunk_work import GradientPiece, Piece

_RETRY_S: Final = 0.2


class MemberFrames:
    """One member's frames, whose states and gradients are of `spec`.

    Together the members of an attempt may hold `max_positions`, and each its part.
    """

    def __init__(
        self, attempt: Attempt, member: Member, spec: PayloadSpec, max_positions: int
    ) -> None:
        self._attempt = attempt
        self._member = member
        self._ledger = attempt.ledgers[member.name]
        self._spec = spec
        self._share = max(1, max_positions // len(attempt.members))

    def forward(self, frame: Frame, body: Forward, now: float) -> Sequence[Reply]:
        """A batch to run.

        Raises:
            OutOfTurn: of a step that is not the member's next, or another batch of that number.
            LimitExceeded, Busy: more positions than the member may have, or may now.
            MalformedFrame: the payload is not of the size that the lengths say.
        """
        if not body.trains:
            self._evaluate(frame, body)
            return []
        if body.step < self._member.asked:
            return []  # an old copy: what it asked for is long done
        self._check_step(body.step)
        if (before := self._ledger.seen(frame, body.micro)) is not None:
            return before
        self._member.forwards[body.micro] = (self._piece(frame, body), now)
        self._member.open.add(body.micro)
        self._ledger.admit(frame, body.micro)
        return []

    def _evaluate(self, frame: Frame, body: Forward) -> None:
        """One that was answered may come again, and is computed again: it changes nothing."""
        if frame.envelope.seq not in self._member.evaluations:
            waits = (self._piece(frame, body), frame.envelope)
            self._member.evaluations[frame.envelope.seq] = waits

    def _piece(self, frame: Frame, body: Forward) -> Piece:
        """The batch of a frame, if it is of the right size and there is room for it."""
        member, positions = self._member, sum(body.lengths)
        if positions > self._share:
            raise LimitExceeded(
                f"a batch of {positions} positions, each of {len(self._attempt.members)} members "
                f"may have {self._share} (training.max_positions)"
            )
        self._spec.check(frame.payload, positions)
        if member.held_positions + positions > self._share:
            raise Busy(f"{member.held_positions} positions of this member wait already", _RETRY_S)
        member.held_positions += positions
        member.unanswered += 1
        lengths = tuple(body.lengths)
        return Piece(member.name, member.adapter, body.micro, lengths, self._spec, frame.payload)

    def backward(self, frame: Frame, body: Backward, now: float) -> Sequence[Reply]:
        """The gradient of a batch.

        Raises:
            OutOfTurn: of a step that is not the member's next, or another gradient of that batch.
            TicketUnknown: no pass of that batch waits.
            MalformedFrame: the payload is not of the batch's size.
        """
        if body.step < self._member.asked:
            return []
        self._check_step(body.step)
        if (before := self._ledger.seen(frame, body.micro)) is not None:
            return before
        waiting, piece = self._attempt.waiting(self._member.name, body.micro)
        self._spec.check(frame.payload, piece.positions)
        if not waiting.gradients:
            waiting.since = now
        waiting.gradients[piece.member] = GradientPiece(body.exponent, frame.payload)
        self._member.unanswered += 1
        self._ledger.admit(frame, body.micro)
        self._ledger.arrived(Kind.FORWARD, body.micro)
        return []

    def step(self, frame: Frame, body: Step, now: float) -> Sequence[Reply]:
        """The member is ready to step.

        Raises:
            OutOfTurn: of a step that is not its next, or gradients are still to come.
        """
        member, envelope = self._member, frame.envelope
        if body.step < member.steps:
            stepped = Frame.build(
                Kind.STEPPED, Stepped(body.step + 1), session=envelope.session, seq=envelope.seq
            )
            return [Reply(stepped.parts())]
        if member.step is not None and body.step < member.asked:
            member.step.envelope = envelope
            return []
        self._check_step(body.step)
        if member.open or not member.learned:
            raise OutOfTurn(f"step {body.step}: {len(member.open)} batches without a gradient")
        member.step = Asked(envelope, body.squared_norm, now)
        member.asked += 1
        member.unanswered += 1
        member.learned = False
        self._ledger.clear()
        return []

    def _check_step(self, step: int) -> None:
        local_steps = self._attempt.begin.local_steps
        if step != self._member.asked or step >= local_steps:
            raise OutOfTurn(
                f"step {step} of {local_steps}, {self._member.asked} were asked for before"
            )


def read(frame: Frame) -> Forward | Backward | Step:
    """The body of a member's frame. Raises `MalformedFrame` for any other."""
    match frame.envelope.kind:
        case Kind.FORWARD:
            return frame.body(Forward)
        case Kind.BACKWARD:
            return frame.body(Backward)
        case Kind.STEP:
            return frame.body(Step)
        case kind:
            raise MalformedFrame(f"a {kind.name} frame is not for a trunk in training")
