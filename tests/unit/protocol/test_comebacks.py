"""Those who are refused are told to come back one after another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsea_mq.protocol.comebacks import Comebacks


def test_given_few_that_are_refused_then_each_waits_the_least_time() -> None:
    comebacks = Comebacks(soonest_s=0.5, latest_s=10.0, apart_s=0.01)
    assert [comebacks.pause_s(now) for now in (0.0, 0.1, 7.0)] == [0.5, 0.5, 0.5]


def test_given_many_that_are_refused_at_once_then_they_come_back_apart() -> None:
    comebacks = Comebacks(soonest_s=0.5, latest_s=10.0, apart_s=0.01)
    pauses = [comebacks.pause_s(0.0) for _ in range(100)]
    assert pauses == pytest.approx([0.5 + 0.01 * n for n in range(100)])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=3000))
def test_given_any_refusals_then_no_pause_is_out_of_bounds(gaps: list[float]) -> None:
    comebacks = Comebacks(soonest_s=0.5, latest_s=3.0, apart_s=0.01)
    now = 0.0
    for gap in gaps:
        now += gap
        assert 0.5 - 1e-9 <= comebacks.pause_s(now) <= 3.0 + 1e-9
