"""Clients that want room again and again, whatever they do in between: nobody waits for ever."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.waiting import GRACE_S, HOLD_S, Line

# Who does something next (a client's session asks, or room is made), and how long before that.
EVENTS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 3), st.sampled_from((0.0, 0.01, 0.3, 1.5))),
    max_size=80,
)
MADE = 0


@settings(max_examples=150, deadline=None)
@given(EVENTS)
def test_while_one_waits_each_other_client_goes_first_once_at_most(
    events: list[tuple[int, int, float]],
) -> None:
    line: Line[bytes] = Line(most=12, most_a_client=3)
    now = 0.0
    waiting: set[bytes] = set()
    passed: dict[int, Counter[int]] = {}  # who was given room since a client waits, or had some
    for client, number, pause in events:
        now += pause
        for over in line.overdue(now):
            assert line.join(over, over[:1], over, now)  # it asks again, as it was told to
        session = bytes([client, number])
        if client != MADE:
            may = session in waiting or (len(waiting) < 12 and clients(waiting)[client] < 3)
            assert line.join(session, bytes([client]), session, now) == may
            waiting |= {session} if may else set()
        elif turns := line.in_turn():
            first = turns[0].session
            line.granted(first)
            waiting.discard(first)
            passed.pop(first[0], None)
            for others in passed.values():
                others[first[0]] += 1
        assert len(line.in_turn()) == len(line) == len(waiting)  # so room never stands idle
        passed = {one: passed.get(one, Counter()) for one in clients(waiting)}
        assert all(times <= 1 for others in passed.values() for times in others.values())


def clients(sessions: set[bytes]) -> Counter[int]:
    return Counter(session[0] for session in sessions)


@given(st.integers(1, 12), st.floats(0, 10))
def test_who_does_not_come_back_has_no_place_any_more(sessions: int, late_s: float) -> None:
    line: Line[int] = Line()
    for number in range(sessions):
        assert line.join(bytes([number]), bytes([number]), number, 0.0)
    assert line.overdue(HOLD_S - 0.01) == []
    assert line.overdue(HOLD_S) == list(range(sessions))
    assert line.in_turn() == []
    assert line.overdue(HOLD_S + GRACE_S + late_s) == []
    assert len(line) == 0
