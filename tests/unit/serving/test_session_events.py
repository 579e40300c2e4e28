"""What a trunk's sessions tell, by their trace, and what they count."""

from __future__ import annotations

from fedsea_mq.serving.session_events import SessionClosed, SessionEvent, SessionOpened
from fedsea_mq.serving.trunk_sessions import Compute, TrunkSessions
from tests.unit.serving.trunk import ANNA, BERT, CARL, TERMS, Trunk

TRACE = bytes(range(1, 25))


def watched() -> tuple[Trunk, list[SessionEvent]]:
    told: list[SessionEvent] = []
    return Trunk(TrunkSessions(TERMS, told.append)), told


def test_a_session_that_is_opened_once_is_told_once_and_its_work_knows_the_trace() -> None:
    trunk, told = watched()
    for _ in range(2):
        trunk.open(ANNA, trace=TRACE)
    (work,) = trunk.extend(ANNA, 0, 4)
    assert isinstance(work, Compute)
    assert work.trace == TRACE
    trunk.close(ANNA)
    assert told == [SessionOpened(ANNA, TRACE, 20), SessionClosed(ANNA, TRACE, expired=False)]
    assert trunk.sessions.counters.opened == 1


def test_a_lease_that_runs_out_is_told_and_counted() -> None:
    trunk, told = watched()
    trunk.open(BERT)
    trunk.sessions.expire(TERMS.lease_s)
    assert told[-1] == SessionClosed(BERT, None, expired=True)
    assert trunk.sessions.counters.expired == 1


def test_refusals_are_counted_by_their_code_and_busy_by_itself() -> None:
    trunk, told = watched()
    trunk.extend(CARL, 0, 1)
    trunk.open(ANNA, 60)
    trunk.open(BERT, 60)
    assert trunk.sessions.counters.refused == {"session_unknown": 1}
    assert trunk.sessions.counters.busy == 1
    assert len(told) == 1
