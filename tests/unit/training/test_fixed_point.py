"""Fixed point: sums are exact, the mean is within its stated bound, and nothing wraps around."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsea_mq.errors import AdapterError, UpdateRefused
from fedsea_mq.training.averaging import MAX_WEIGHT
from fedsea_mq.training.round_plan import MAX_CLIENTS
from fedsea_mq.training.secure_aggregation.fixed_point import FixedPoint
from fedsea_mq.training.secure_aggregation.messages import MAX_ABS

ranges = st.builds(
    FixedPoint,
    clients=st.integers(2, MAX_CLIENTS),
    max_weight=st.integers(1, MAX_WEIGHT),
    max_abs=st.floats(2.0**-10, MAX_ABS, width=32),
)


@settings(max_examples=300, deadline=None)
@given(ranges, st.data())
def test_the_mean_is_within_its_bound_of_the_exact_one(of: FixedPoint, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, min(of.clients, 6)))
    element = st.floats(-of.max_abs, of.max_abs, width=32)
    columns = data.draw(st.lists(st.lists(element, min_size=count, max_size=count), min_size=1))
    weights = data.draw(st.lists(st.integers(1, of.max_weight), min_size=count, max_size=count))
    total = np.zeros(len(columns) + 1, np.uint64)
    for client, weight in enumerate(weights):
        update = np.array([column[client] for column in columns], np.float32)
        total += of.encode(update, weight)
    mean, weight = of.decode(total, count)
    assert weight == sum(weights)
    bound = Fraction(of.error_bound(count, weight))
    for column, found in zip(columns, mean, strict=True):
        exact = sum(Fraction(w) * Fraction(x) for w, x in zip(weights, column, strict=True))
        assert abs(Fraction(float(found)) - exact / weight) <= bound


@settings(max_examples=200, deadline=None)
@given(ranges, st.sampled_from((-1.0, 1.0)))
def test_the_fullest_sum_does_not_wrap_around(of: FixedPoint, sign: float) -> None:
    largest = of.encode(np.array([sign * of.max_abs], np.float32), of.max_weight)
    one = int(largest[:1].view(np.int64)[0])
    assert abs(one) * of.clients <= 2**62 + of.clients
    # And the range is not wasted: four times the scale would wrap around.
    assert abs(one) * of.clients > 2**60
    total = largest * np.uint64(of.clients)
    mean, _ = of.decode(total, of.clients)
    assert mean[0] == pytest.approx(sign * of.max_abs, rel=1e-5)


def test_the_coarsest_agreed_range_still_resolves_a_fifty_thousandth() -> None:
    of = FixedPoint(MAX_CLIENTS, MAX_WEIGHT, MAX_ABS)
    assert of.error_bound(MAX_CLIENTS, MAX_CLIENTS) < 1 / 50_000


def test_elements_are_rounded_to_the_nearest_unit() -> None:
    of = FixedPoint(MAX_CLIENTS, MAX_WEIGHT, MAX_ABS)
    units = np.array([0.25, 0.75, -0.25, -0.75, 1.0], np.float32)
    words = of.encode(units * np.float32(2.0**-of.scale_bits), 3).view(np.int64)
    assert words.tolist() == [1, 2, -1, -2, 3, 3]  # 0.75, 2.25, ... and the weight


def test_a_usual_range_resolves_more_than_fp32_holds() -> None:
    assert FixedPoint(10, 10_000, 16.0).error_bound(10, 10_000) < 2.0**-40


def test_more_weight_brings_more_precision() -> None:
    of = FixedPoint(10, 1000, 8.0)
    bounds = [of.error_bound(10, weight) for weight in (10, 100, 10_000)]
    assert all(more > less for more, less in pairwise(bounds))


REFUSED = {
    "NaN": (np.array([0.0, np.nan], np.float32), 1),
    "infinite": (np.array([np.inf, 0.0], np.float32), 1),
    "too large": (np.array([8.001, 0.0], np.float32), 1),
    "too small": (np.array([0.0, -8.001], np.float32), 1),
    "fp64": (np.zeros(2), 1),
    "a matrix": (np.zeros((2, 2), np.float32), 1),
    "no weight": (np.zeros(2, np.float32), 0),
    "great weight": (np.zeros(2, np.float32), 1001),
    "fraction": (np.zeros(2, np.float32), 2.0),
}


@pytest.mark.parametrize(("update", "weight"), REFUSED.values(), ids=REFUSED)
def test_what_is_out_of_range_is_refused(update: np.ndarray, weight: int) -> None:
    with pytest.raises(AdapterError):
        FixedPoint(4, 1000, 8.0).encode(update, weight)


@pytest.mark.parametrize("weight", [0, 1, 3001, 2**64 - 1])
def test_a_sum_with_an_impossible_weight_is_refused(weight: int) -> None:
    with pytest.raises(UpdateRefused, match="weight"):
        FixedPoint(4, 1000, 8.0).decode(np.array([5, weight], np.uint64), clients=3)
