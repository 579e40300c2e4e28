"""Max-min fairness: nobody's share could grow but at the cost of a smaller one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsea_mq.serving.fair_share import fair_shares


@pytest.mark.parametrize(
    ("wanted", "budget", "shares"),
    [
        ({}, 8, {}),
        ({"a": 3}, 8, {"a": 3}),
        ({"a": 3, "b": 30}, 8, {"a": 3, "b": 5}),
        ({"a": 32, "b": 1, "c": 1}, 3, {"a": 1, "b": 1, "c": 1}),
        ({"a": 10, "b": 10}, 8, {"a": 4, "b": 4}),
        ({"a": 2, "b": 3, "c": 9}, 100, {"a": 2, "b": 3, "c": 9}),
        ({"a": 5, "b": 5}, 0, {"a": 0, "b": 0}),
    ],
)
def test_shares(wanted: dict[str, int], budget: int, shares: dict[str, int]) -> None:
    assert fair_shares(wanted, budget, {}) == shares


def test_what_is_left_over_goes_to_whom_most_is_owed() -> None:
    wanted = dict.fromkeys("abcd", 5)
    assert fair_shares(wanted, 6, {"b": 3, "d": 1}) == {"a": 1, "b": 2, "c": 1, "d": 2}


@given(
    st.dictionaries(st.integers(0, 20), st.integers(1, 50), max_size=12),
    st.integers(0, 200),
    st.dictionaries(st.integers(0, 20), st.integers(-9, 9)),
)
def test_all_that_can_be_is_given_and_no_envy_is_justified(
    wanted: dict[int, int], budget: int, owed: dict[int, int]
) -> None:
    shares = fair_shares(wanted, budget, owed)
    assert shares.keys() == wanted.keys()
    assert sum(shares.values()) == min(budget, sum(wanted.values()))
    assert all(0 <= shares[key] <= wanted[key] for key in wanted)
    unmet = [key for key in wanted if shares[key] < wanted[key]]
    for key in unmet:
        assert all(shares[other] <= shares[key] + 1 for other in wanted)
