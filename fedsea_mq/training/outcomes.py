"""What comes of the work of an attempt: what its members are told, and where they stand. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedsea_mq.errors import (
    FedSeaError,
    MalformedFrame,
    StepFailed,
    TrainingDiverged,
    TrunkDiverged,
)
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Body
from fedsea_mq.protocol.training_messages import Gradient, Outputs, Stepped
from fedsea_mq.serving.trunk_sessions import Reply
from fedsea_mq.training.attempt import Attempt, Pass
from fedsea_mq.training.gathering import Member
from fedsea_mq.training.trunk_work import (
    NotFinite,
    Outcome,
    Piece,
    RunBackward,
    RunForward,
    TakeStep,
    Work,
)


def told(attempt: Attempt, work: Work, outcome: Outcome, now: float) -> Iterator[Reply]:
    """The replies to the members; those that are out are told nothing."""
    match work:
        case TakeStep():
            yield from _stepped(attempt, work, outcome, now)
        case RunForward() if work.trains:
            yield from _forwarded(attempt, work, outcome, now)
        case RunForward():
            yield from _evaluated(attempt, work, outcome, now)
        case RunBackward():
            yield from _backwarded(attempt, work, outcome, now)


def _stepped(attempt: Attempt, work: TakeStep, outcome: Outcome, now: float) -> Iterator[Reply]:
    for name in work.squared_norms:
        member = attempt.members[name]
        if member.step is None:
            continue  # it is out
        asked, member.step = member.step, None
        _answered(member, now)
        if isinstance(outcome, Exception):
            yield refusal(asked.envelope, "the step was not taken", outcome)
            attempt.leave(member)
        else:
            member.steps += 1
            yield reply(asked.envelope, Kind.STEPPED, Stepped(member.steps))


def _forwarded(attempt: Attempt, work: RunForward, outcome: Outcome, now: float) -> Iterator[Reply]:
    if isinstance(outcome, (NotFinite, Exception)):
        yield from _not_forwarded(attempt, work, outcome, now)
        return
    attempt.passes[work.number] = Pass(work.pieces)
    for member, piece in attempt.present(work):
        _answered(member, now)
        body, payload = Outputs(member.steps, piece.micro), outcome[member.name].payload
        ledger = attempt.ledgers[member.name]
        yield ledger.answer(Kind.FORWARD, piece.micro, Kind.OUTPUTS, body, payload)
    attempt.drop_orphans()


def _not_forwarded(
    attempt: Attempt, work: RunForward, outcome: NotFinite | Exception, now: float
) -> Iterator[Reply]:
    """At fault are some of the members, whose frames go, or the trunk, and all may come again."""
    for member, piece in attempt.present(work):
        if isinstance(outcome, NotFinite) and piece.member not in outcome.members:
            member.forwards[piece.micro] = (piece, now)
            continue
        _release(member, piece, now)
        member.open.discard(piece.micro)
        error = fault("the pass was not run", outcome)
        yield attempt.ledgers[piece.member].refuse(Kind.FORWARD, piece.micro, error)


def _evaluated(attempt: Attempt, work: RunForward, outcome: Outcome, now: float) -> Iterator[Reply]:
    for member, piece in attempt.present(work):
        if isinstance(outcome, NotFinite) and piece.member not in outcome.members:
            continue  # as it waits
        (seq,) = (seq for seq, (one, _) in member.evaluations.items() if one is piece)
        _, envelope = member.evaluations.pop(seq)
        _release(member, piece, now)
        if isinstance(outcome, (NotFinite, Exception)):
            yield refusal(envelope, "the pass was not run", outcome)
        else:
            body = Outputs(member.steps, piece.micro)
            yield reply(envelope, Kind.OUTPUTS, body, outcome[member.name].payload)


def _backwarded(
    attempt: Attempt, work: RunBackward, outcome: Outcome, now: float
) -> Iterator[Reply]:
    if isinstance(outcome, NotFinite):
        yield from _not_backwarded(attempt, work, outcome)
        return
    for member, piece in attempt.present(work):
        _release(member, piece, now)
        member.open.discard(piece.micro)
        ledger = attempt.ledgers[piece.member]
        if isinstance(outcome, Exception):
            error = fault("there is no gradient", outcome)
            yield ledger.refuse(Kind.BACKWARD, piece.micro, error)
            attempt.leave(member)
            continue
        member.learned = True
        member.sequences += len(piece.lengths)
        answer = outcome[piece.member]
        body = Gradient(member.steps, piece.micro, answer.exponent, answer.squared_norm)
        yield ledger.answer(Kind.BACKWARD, piece.micro, Kind.GRADIENT, body, answer.payload)


def _not_backwarded(attempt: Attempt, work: RunBackward, outcome: NotFinite) -> Iterator[Reply]:
    """The pass goes on waiting, for other gradients of the members at fault."""
    gradients = dict(work.gradients)
    for piece in work.pieces:
        member = attempt.members[piece.member]
        if member.out:
            gradients.pop(piece.member, None)
        elif piece.member in outcome.members:
            del gradients[piece.member]
            member.unanswered -= 1
            error = fault("there is no gradient", outcome)
            yield attempt.ledgers[piece.member].refuse(Kind.BACKWARD, piece.micro, error)
    attempt.passes[work.number] = Pass(work.pieces, gradients)
    attempt.drop_orphans()


def _answered(member: Member, now: float) -> None:
    member.unanswered -= 1
    member.answered_at = now


def _release(member: Member, piece: Piece, now: float) -> None:
    """A member's batch is done with, or refused."""
    member.held_positions -= piece.positions
    _answered(member, now)


def reply(to: Envelope, kind: Kind, body: Body, payload: Sequence[bytes] = ()) -> Reply:
    """The answer to a frame."""
    frame = Frame.build(kind, body, session=to.session, seq=to.seq, payload=payload)
    return Reply(frame.parts())


def refusal(to: Envelope, what: str, outcome: NotFinite | Exception) -> Reply:
    """The answer to a frame whose work was not done."""
    return Reply(Frame.error(fault(what, outcome), to).parts())


def fault(what: str, outcome: NotFinite | Exception) -> FedSeaError:
    """What the other party is told."""
    if isinstance(outcome, NotFinite):
        return MalformedFrame("states or gradients that are not all finite numbers")
    if isinstance(outcome, TrainingDiverged):
        return TrunkDiverged(f"{what}: the trunk's gradients are not finite numbers, or too large")
    # The class says enough: a message may name what is not theirs to read.
    return StepFailed(f"{what}: {type(outcome).__name__}")
