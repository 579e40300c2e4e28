"""Max-min fair division of a step's positions among those who want some of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


def fair_shares(wanted: Mapping[K, int], budget: int, owed: Mapping[K, int]) -> dict[K, int]:
    """Divide `budget` so that nobody's share could grow but at the cost of a smaller one.

    What cannot be divided evenly goes, one each, to those who are owed most. The shares sum to
    `min(budget, sum(wanted))`.
    """
    shares: dict[K, int] = {}
    left = budget
    modest_first = sorted(wanted, key=lambda key: (wanted[key], -owed.get(key, 0)))
    for taken, key in enumerate(modest_first):
        even = left // (len(wanted) - taken)
        if wanted[key] > even:
            # From here on everyone wants more than an even share.
            shares.update(_divide(modest_first[taken:], left, wanted, owed))
            break
        shares[key] = wanted[key]
        left -= wanted[key]
    return shares


def _divide(
    keys: list[K], left: int, wanted: Mapping[K, int], owed: Mapping[K, int]
) -> dict[K, int]:
    even, over = divmod(left, len(keys))
    most_owed = sorted(keys, key=lambda key: -owed.get(key, 0))
    return {key: min(wanted[key], even + (rank < over)) for rank, key in enumerate(most_owed)}
