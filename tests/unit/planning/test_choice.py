"""Which cut is recommended, and what it is said to be for."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fedsea_mq.model.partition import Cut
from fedsea_mq.planning.choice import Option, pareto_front, recommended
from fedsea_mq.planning.forecast import Forecast
from fedsea_mq.planning.traffic import Bytes
from fedsea_mq.privacy.audited import Finding

NOTHING = Bytes(0, 0)


def option(
    cut: Cut,
    tpot_s: float,
    client_bytes: int,
    *,
    recovered: float | None = None,
    fits: bool = True,
) -> Option:
    found = None if recovered is None else Finding(recovered, 0.5, "an attack", "base weights")
    forecast = Forecast(
        cut, 0.1, tpot_s, NOTHING, NOTHING, client_bytes, 0, 1, 1, tpot_s, 1 / tpot_s
    )
    return Option(forecast, found, fits)


SHALLOW = option(Cut(1, 1), 0.010, 10**9)
DEEP = option(Cut(4, 4), 0.014, 3 * 10**9)
DEEPEST = option(Cut(8, 8), 0.020, 6 * 10**9)


def test_the_deepest_that_is_fast_enough_is_taken_and_the_next_is_told() -> None:
    chosen = recommended([SHALLOW, DEEP, DEEPEST], slowdown=1.5)
    assert chosen is not None
    assert chosen.option is DEEP
    assert "4+4 is the least exposed cut that fits the client's memory (3.00 GB)" in chosen.reason
    assert "14.0 ms, 1.40 times" in chosen.reason
    assert "Run fedsea audit" in chosen.reason
    assert "8+8, takes 20.0 ms a token" in chosen.reason


def test_what_does_not_fit_is_not_taken_but_told() -> None:
    large = option(Cut(8, 8), 0.011, 60 * 10**9, fits=False)
    chosen = recommended([SHALLOW, large], slowdown=1.5)
    assert chosen is not None
    assert chosen.option is SHALLOW
    assert "8+8, does not fit (60.00 GB)" in chosen.reason
    assert recommended([large], slowdown=1.5) is None


def test_a_measured_recovery_counts_more_than_depth() -> None:
    read = option(Cut(1, 1), 0.010, 10**9, recovered=1.0)
    hidden = option(Cut(3, 1), 0.011, 2 * 10**9, recovered=0.4)
    unknown = option(Cut(2, 2), 0.011, 2 * 10**9)
    chosen = recommended([read, hidden, unknown], slowdown=1.5)
    assert chosen is not None
    assert chosen.option is hidden
    assert "recovered 40% of a prompt's tokens (an attack)" in chosen.reason


def test_where_all_is_recovered_the_reason_says_that_nothing_is_hidden() -> None:
    chosen = recommended([option(Cut(1, 1), 0.010, 10**9, recovered=1.0)], slowdown=1.5)
    assert chosen is not None
    assert "At the nearest noise audited, 0.50 of the head output's RMS" in chosen.reason
    assert "it hides nothing from that server" in chosen.reason


scores = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=100, deadline=None)
@given(drawn=st.lists(scores, min_size=1, max_size=12))
def test_the_front_beats_all_that_is_not_on_it_and_nothing_on_it_is_beaten(
    drawn: list[tuple[int, int, int, int]],
) -> None:
    options = [option(Cut(h, t), tpot / 100, size) for h, t, tpot, size in drawn]
    front = pareto_front(options)
    assert front
    for one in options:
        beaten = any(one.is_beaten_by(other) for other in front)
        assert beaten is (one not in front)


def test_depth_is_that_of_the_shallower_side() -> None:
    assert option(Cut(5, 2), 1.0, 1).depth == 2
    assert option(Cut(0, 7), 1.0, 1).depth == 0


def test_equals_are_both_on_the_front() -> None:
    twins = [option(Cut(1, 1), 0.5, 7), option(Cut(1, 1), 0.5, 7)]
    assert pareto_front(twins) == twins
