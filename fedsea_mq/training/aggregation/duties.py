"""What a member that asks is told, from where the run stands; None where there is nothing yet."""

from __future__ import annotations

from fedsea_mq.errors import AttemptOver
from fedsea_mq.protocol.training_messages import Duty, Secured, Task
from fedsea_mq.training.aggregation.course import RunCourse
from fedsea_mq.training.rounds import Phase

# A body and its payload.
Answer = tuple[Task | Secured, list[bytes]]


def duty_of(course: RunCourse, member: str) -> Answer | None:
    """What a member is to do. Whoever is told to train is noted in the attempt."""
    shared = [course.shared] if course.shared else []
    if course.over:
        if course.rounds.phase is Phase.FAILED:
            return Task(Duty.GIVE_UP), []
        return Task(Duty.FINISH, course.rounds.progress.done, course.ended), shared
    if (owed := course.owes(member)) is not None:
        owed.tasked.add(member)
        return Task(Duty.TRAIN, owed.round.number, owed.id, owed.local_steps), shared
    return _invitation(course, member)


def _invitation(course: RunCourse, member: str) -> Answer | None:
    attempt = course.attempt
    if attempt is None or attempt.secure is None:
        return None
    records, number = attempt.secure.invitation(member), attempt.secure.number_of(member)
    if records is None or number is None:
        return None
    return Task(Duty.MASK, attempt.round.number, attempt.id, number=number), records


def next_of(course: RunCourse, member: str, attempt: bytes) -> Answer | AttemptOver | None:
    """What a member is told to what it said last in a secure aggregation."""
    stages = course.stages(attempt)
    number = None if stages is None else stages.number_of(member)
    if stages is None or number is None:
        return AttemptOver("the attempt came to nothing")
    said = stages.answer(number)
    if said is None:
        return None
    return Secured(attempt), [said] if said else []
