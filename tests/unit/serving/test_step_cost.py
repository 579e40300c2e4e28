"""Fixed and marginal cost of a step, learned from steps that ran."""

from __future__ import annotations

import random

import pytest

from fedsea_mq.serving.step_cost import StepCost


def learned(sizes: list[int], fixed_s: float, each_s: float, noise: float = 0.0) -> StepCost:
    cost, rng = StepCost(), random.Random(1)
    for size in sizes:
        cost.observe(size, (fixed_s + size * each_s) * rng.uniform(1 - noise, 1 + noise))
    return cost


def test_before_any_step_nothing_is_known() -> None:
    assert (StepCost().fixed_s, StepCost().each_s) == (0.0, 0.0)
    assert StepCost().positions_within(1.0, 512) == 512


def test_steps_of_different_sizes_tell_both_parts() -> None:
    cost = learned([1, 8, 64, 3, 20] * 20, 4e-3, 2e-4)
    assert cost.fixed_s == pytest.approx(4e-3)
    assert cost.each_s == pytest.approx(2e-4)
    assert cost.positions_within(2e-3, 512) == pytest.approx(10, abs=1)
    assert cost.positions_within(2e-3, 4) == 4


def test_noise_averages_out() -> None:
    cost = learned([random.Random(n).randint(1, 64) for n in range(200)], 4e-3, 2e-4, noise=0.1)
    assert cost.fixed_s == pytest.approx(4e-3, rel=0.2)
    assert cost.each_s == pytest.approx(2e-4, rel=0.2)


@pytest.mark.parametrize("sizes", [[8] * 50, [1], [64] * 3])
def test_steps_of_one_size_never_blame_one_part_for_all(sizes: list[int]) -> None:
    cost = learned(sizes, 4e-3, 2e-4)
    whole = 4e-3 + sizes[0] * 2e-4
    assert cost.fixed_s == pytest.approx(whole / 2)
    assert cost.fixed_s + sizes[0] * cost.each_s == pytest.approx(whole)


def test_what_changed_is_learned_anew() -> None:
    cost = learned([1, 64] * 200, 4e-3, 2e-4)
    for size in [1, 64] * 1000:
        cost.observe(size, 8e-3 + size * 1e-4)
    assert cost.fixed_s == pytest.approx(8e-3, rel=0.05)
