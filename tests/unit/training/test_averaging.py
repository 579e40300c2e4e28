"""FedAvg against numpy's average of the clients' adapters, and what is not let in."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from fedsea_mq.errors import AdapterError, ConfigError, TooFewClients, UpdateRefused
from fedsea_mq.training.adapter_layout import AdapterLayout
from fedsea_mq.training.averaging import (
    MAX_WEIGHT,
    Personal,
    WeightedMean,
    clip_update,
    update_norm,
    update_of,
)
from tests.unit.training.adapters import SHAPES, adapters, moved

LAYOUT = AdapterLayout.of(SHAPES)
WEIGHTS = [3, 1, 250, 17, 1000]


def mean_of(updates: list[dict[str, torch.Tensor]], weights: list[int]) -> dict[str, torch.Tensor]:
    mean = WeightedMean(LAYOUT)
    for update, weight in zip(updates, weights, strict=True):
        mean.add(update, weight)
    return mean.mean()


class TestMean:
    def test_start_plus_mean_update_is_the_weighted_average_of_the_clients(self) -> None:
        start = adapters(0)
        clients = [moved(start, seed) for seed in range(1, 6)]
        mean = mean_of([update_of(client, start) for client in clients], WEIGHTS)
        for name in SHAPES:
            expected = np.average(
                [client[name].double().numpy() for client in clients], axis=0, weights=WEIGHTS
            )
            found = (start[name].double() + mean[name]).numpy()
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)

    def test_it_is_exact_in_fp64(self) -> None:
        """Against sums without rounding (`math.fsum`), though the addends differ by 1e12."""
        sizes = (1e6, 1e-6, 1.0, 1e-3, 1e3)
        updates = [adapters(seed, size) for seed, size in enumerate(sizes)]
        mean = mean_of(updates, WEIGHTS)
        for name in SHAPES:
            columns = torch.stack([update[name].flatten() for update in updates], 1).tolist()
            found = mean[name].flatten().tolist()
            for column, value in zip(columns, found, strict=True):
                terms = [weight * x for weight, x in zip(WEIGHTS, column, strict=True)]
                scale = sum(map(abs, terms)) / sum(WEIGHTS)
                assert abs(value - math.fsum(terms) / sum(WEIGHTS)) <= 5 * 2**-52 * scale

    def test_the_order_changes_last_bits_only(self) -> None:
        updates = [adapters(seed) for seed in range(40)]
        weights = [1 + seed * seed for seed in range(40)]
        first = mean_of(updates, weights)
        order = random.Random(0).sample(range(40), 40)
        second = mean_of([updates[n] for n in order], [weights[n] for n in order])
        for name in SHAPES:
            torch.testing.assert_close(first[name], second[name], rtol=0, atol=40 * 2**-52)

    def test_one_client_is_its_own_mean(self) -> None:
        update = adapters(1)
        mean = mean_of([update], [7])
        assert all(torch.equal(mean[name].float(), update[name]) for name in SHAPES)

    def test_updates_in_bf16_are_summed_in_fp64(self) -> None:
        update = {name: tensor.bfloat16() for name, tensor in adapters(1).items()}
        mean = mean_of([update] * 3, [1, 1, 1])
        assert all(torch.equal(mean[name], update[name].double()) for name in SHAPES)

    def test_nothing_has_no_mean(self) -> None:
        with pytest.raises(TooFewClients):
            WeightedMean(LAYOUT).mean()


def poisoned(value: float) -> dict[str, torch.Tensor]:
    update = adapters(1)
    update["tail.0.v.lora_B"][15, 3] = value
    return update


REFUSED = {
    "NaN": (poisoned(math.nan), 1),
    "infinite": (poisoned(-math.inf), 1),
    "integers": ({name: tensor.long() for name, tensor in adapters(1).items()}, 1),
    "a tensor short": ({"tail.scale": torch.tensor(1.0)}, 1),
    "a tensor more": ({**adapters(1), "other": torch.tensor(1.0)}, 1),
    "another shape": ({**adapters(1), "tail.scale": torch.zeros(1)}, 1),
    "no weight": (adapters(1), 0),
    "negative weight": (adapters(1), -5),
    "great weight": (adapters(1), MAX_WEIGHT + 1),
    "fraction": (adapters(1), 0.5),
    "truth": (adapters(1), True),
}


@pytest.mark.parametrize(("update", "weight"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_leaves_no_trace(update: dict[str, torch.Tensor], weight: int) -> None:
    mean = WeightedMean(LAYOUT)
    mean.add(adapters(2), 3)
    before = mean.mean()
    with pytest.raises(UpdateRefused):
        mean.add(update, weight)
    assert mean.weight == 3
    assert all(torch.equal(mean.mean()[name], before[name]) for name in SHAPES)


class TestClipping:
    def test_a_large_update_keeps_its_direction_and_loses_its_length(self) -> None:
        update = adapters(1, scale=100.0)
        clipped, norm = clip_update(update, 2.0)
        whole = torch.cat([part.flatten() for part in update.values()])
        assert norm == pytest.approx(float(whole.double().norm()))
        assert update_norm(clipped) == pytest.approx(2.0)
        shrunk = torch.cat([part.flatten() for part in clipped.values()])
        torch.testing.assert_close(shrunk * (norm / 2.0), whole)

    def test_a_small_one_stays_as_it_is(self) -> None:
        update = adapters(1)
        clipped, norm = clip_update(update, 1e3)
        assert norm < 1e3
        assert all(torch.equal(clipped[name], update[name]) for name in SHAPES)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_what_is_not_finite_is_reported_and_refused_after_clipping_too(
        self, value: float
    ) -> None:
        clipped, norm = clip_update(poisoned(value), 1.0)
        assert not math.isfinite(norm)
        with pytest.raises(UpdateRefused):
            WeightedMean(LAYOUT).add(clipped, 1)

    def test_a_poisoner_moves_the_mean_by_its_share_of_the_bound_at_most(self) -> None:
        honest = [adapters(seed, 0.01) for seed in range(9)]
        poison, _ = clip_update(adapters(99, 1e6), 1.0)
        clean = mean_of(honest, [1] * 9)
        spoilt = mean_of([*honest, poison], [1] * 10)
        moved_by = update_norm({name: spoilt[name] - 0.9 * clean[name] for name in SHAPES})
        assert moved_by == pytest.approx(0.1, rel=1e-5)


class TestPersonal:
    def test_what_is_personal_is_not_shared(self) -> None:
        personal = Personal(("tail.*",))
        given = adapters(0)
        assert set(personal.shared(given)) == {"head.0.q.lora_A", "head.0.q.lora_B"}
        assert set(personal.kept(given)) == set(SHAPES) - set(personal.shared(given))

    def test_by_default_all_is_shared(self) -> None:
        assert Personal().shared(adapters(0)).keys() == SHAPES.keys()
        assert Personal().kept(adapters(0)) == {}

    @pytest.mark.parametrize("patterns", [("tial.*",), ("tail.*", "Head.*"), ("*",)])
    def test_a_misspelt_pattern_shares_nothing(self, patterns: tuple[str, ...]) -> None:
        with pytest.raises(ConfigError, match="personal"):
            Personal(patterns).shared(adapters(0))


def test_averaging_a_and_b_is_not_averaging_their_products() -> None:
    """The caveat in the module's words, so that nobody takes it for exact."""
    start, clients = adapters(0), [moved(adapters(0), seed) for seed in (1, 2)]
    mean = mean_of([update_of(client, start) for client in clients], [1, 1])
    averaged = {name: start[name] + mean[name].float() for name in SHAPES}

    def product(of: dict[str, torch.Tensor]) -> torch.Tensor:
        return of["head.0.q.lora_B"] @ of["head.0.q.lora_A"]

    gap = product(averaged) - (product(clients[0]) + product(clients[1])) / 2
    assert gap.abs().max() > 1e-3


def test_an_update_is_of_one_layout() -> None:
    with pytest.raises(AdapterError):
        update_of({"tail.scale": torch.tensor(1.0)}, adapters(0))
