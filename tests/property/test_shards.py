"""Shards: every example at one client exactly, whatever the classes, clients and skew."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsea_mq.errors import ConfigError
from fedsea_mq.tasks.shards import Shards, dirichlet_shards, held_out, iid_shards

LABELS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=120)
SEEDS = st.integers(0, 1 << 32)
ALPHAS = st.floats(1e-3, 1e4)


def divides(shards: Shards, examples: int, clients: int) -> bool:
    whole = sorted(number for shard in shards for number in shard)
    return len(shards) == clients and all(shards) and whole == list(range(examples))


@settings(deadline=None)
@given(labels=LABELS, alpha=ALPHAS, seed=SEEDS, data=st.data())
def test_dirichlet_gives_each_example_to_one_client_and_none_to_nobody(
    labels: list[str], alpha: float, seed: int, data: st.DataObject
) -> None:
    clients = data.draw(st.integers(1, len(labels)))
    shards = dirichlet_shards(labels, clients, alpha, seed)
    assert divides(shards, len(labels), clients)
    assert shards == dirichlet_shards(labels, clients, alpha, seed)


@settings(deadline=None)
@given(examples=st.integers(1, 300), seed=SEEDS, data=st.data())
def test_iid_shards_are_of_equal_size_but_for_one(
    examples: int, seed: int, data: st.DataObject
) -> None:
    clients = data.draw(st.integers(1, examples))
    shards = iid_shards(examples, clients, seed)
    assert divides(shards, examples, clients)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert shards == iid_shards(examples, clients, seed)


@settings(deadline=None)
@given(
    keys=st.lists(st.integers(0, 30), min_size=2, max_size=100).filter(lambda k: len(set(k)) > 1),
    share=st.floats(0.01, 0.99),
    seed=SEEDS,
)
def test_no_key_is_on_both_sides(keys: list[int], share: float, seed: int) -> None:
    kept, out = held_out(keys, share, seed)
    assert divides([kept, out], len(keys), 2)
    sides = {keys[number] for number in kept}, {keys[number] for number in out}
    assert not sides[0] & sides[1]
    assert abs(len(sides[1]) - share * len(set(keys))) <= 1


def skew(shards: Shards, labels: list[str]) -> float:
    """Mean over clients of the share of the client's largest class."""
    counts = [Counter(labels[number] for number in shard) for shard in shards]
    return float(np.mean([max(count.values()) / count.total() for count in counts]))


def test_a_small_alpha_makes_clients_unlike_and_a_large_one_alike() -> None:
    labels = list("abcd") * 500
    skews = [skew(dirichlet_shards(labels, 8, alpha, 1), labels) for alpha in (0.05, 1.0, 1000.0)]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.8
    assert skews[2] < 0.3
    assert skew(iid_shards(2000, 8, 1), labels) < 0.35


def test_another_seed_divides_otherwise() -> None:
    labels = list("abcd") * 20
    assert dirichlet_shards(labels, 4, 1.0, 1) != dirichlet_shards(labels, 4, 1.0, 2)
    assert iid_shards(80, 4, 1) != iid_shards(80, 4, 2)


@pytest.mark.parametrize(("examples", "clients"), [(3, 4), (0, 1), (5, 0), (5, -1)])
def test_a_client_without_an_example_is_refused(examples: int, clients: int) -> None:
    with pytest.raises(ConfigError, match=f"{clients} clients for {examples} examples"):
        dirichlet_shards(["a"] * examples, clients, 1.0, 0)
    with pytest.raises(ConfigError, match=f"{clients} clients for {examples} examples"):
        iid_shards(examples, clients, 0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_alpha_that_is_not_positive_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match="alpha"):
        dirichlet_shards(["a", "b"], 2, alpha, 0)


def test_a_side_that_would_be_empty_is_refused() -> None:
    for keys, share in ((["a", "a"], 0.5), (["a", "b"], 0.0), (["a", "b"], 1.0)):
        with pytest.raises(ConfigError, match="leaves a side empty"):
            held_out(keys, share, 0)
