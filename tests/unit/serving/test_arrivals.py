"""Who is on the way, by when they should be here, and for how long they are expected."""

from __future__ import annotations

import pytest

from fedsea_mq.serving.arrivals import Arrivals


def accustomed(turnaround_s: float, sessions: int = 1, times: int = 20) -> tuple[Arrivals, float]:
    """Sessions `a`, `b`... that always come back after the same time, and were just answered."""
    arrivals, now = Arrivals(), 0.0
    for _ in range(times):
        for n in range(sessions):
            arrivals.answered(bytes([n]), "decode", now)
        now += turnaround_s
        for n in range(sessions):
            arrivals.arrived(bytes([n]), now)
    for n in range(sessions):
        arrivals.answered(bytes([n]), "decode", now)
    return arrivals, now


def test_nobody_is_waited_for_before_anything_is_known_of_them() -> None:
    arrivals = Arrivals()
    arrivals.arrived(b"a", 0.0)
    assert not arrivals.any_on_the_way
    arrivals.answered(b"a", "decode", 1.0)
    assert arrivals.any_on_the_way
    assert arrivals.worth_waiting_until(1.0, 99.0) is None
    assert not arrivals.any_on_the_way


def test_who_comes_back_regularly_is_waited_for_until_then() -> None:
    arrivals, now = accustomed(0.002)
    until = arrivals.worth_waiting_until(now, now + 0.01)
    assert until == pytest.approx(now + 0.002, abs=0.001)


def test_who_would_come_too_late_is_not_waited_for() -> None:
    arrivals, now = accustomed(0.05)
    assert arrivals.worth_waiting_until(now, now + 0.01) is None
    assert arrivals.any_on_the_way
    assert arrivals.worth_waiting_until(now + 0.045, now + 0.055) == pytest.approx(
        now + 0.05, abs=0.004
    )


def test_who_is_overdue_is_waited_for_no_longer() -> None:
    arrivals, now = accustomed(0.002)
    assert arrivals.worth_waiting_until(now + 0.1, now + 0.2) is None
    assert not arrivals.any_on_the_way


def test_the_last_arrival_ends_the_wait() -> None:
    arrivals, now = accustomed(0.002, sessions=3)
    for n in (0, 1):
        arrivals.arrived(bytes([n]), now + 0.001)
        assert arrivals.any_on_the_way
    arrivals.arrived(bytes([2]), now + 0.001)
    assert not arrivals.any_on_the_way


def test_who_left_is_not_expected() -> None:
    arrivals, now = accustomed(0.002)
    arrivals.left(b"\0")
    assert not arrivals.any_on_the_way
    assert arrivals.worth_waiting_until(now, now + 1) is None


def test_what_follows_each_kind_of_answer_is_learned_apart() -> None:
    arrivals, now = Arrivals(), 0.0
    for _ in range(20):
        arrivals.answered(b"a", "tail", now)
        arrivals.arrived(b"a", now + 0.001)
        arrivals.answered(b"a", "head", now + 0.002)
        now += 0.1
        arrivals.arrived(b"a", now)
    arrivals.answered(b"a", "head", now)
    assert arrivals.worth_waiting_until(now, now + 0.01) is None
    arrivals.answered(b"a", "tail", now)
    until = arrivals.worth_waiting_until(now, now + 0.01)
    assert until == pytest.approx(now + 0.001, abs=0.001)


def test_an_answer_to_a_session_that_left_in_the_meantime_leaves_nothing_behind() -> None:
    arrivals = Arrivals()
    arrivals.arrived(b"a", 0.0)
    arrivals.left(b"a")
    arrivals.answered(b"a", "decode", 1.0)
    assert not arrivals.any_on_the_way
    assert arrivals.sessions == 0
