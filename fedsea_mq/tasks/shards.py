"""Examples divided among clients: evenly, or skewed by class. Pure, and the same for a seed.

Every function takes and gives numbers of examples, so that it serves any data set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from fedsea_mq.errors import ConfigError

Shards = list[list[int]]


def iid_shards(examples: int, clients: int, seed: int) -> Shards:
    """Each client's examples, drawn alike; sizes differ by at most one.

    Raises `ConfigError` for more clients than examples, or none.
    """
    check_clients(examples, clients)
    order = np.random.default_rng(seed).permutation(examples)
    return [sorted(part.tolist()) for part in np.array_split(order, clients)]


def dirichlet_shards(labels: Sequence[Hashable], clients: int, alpha: float, seed: int) -> Shards:
    """Each client's examples, every class divided by shares from a Dirichlet distribution.

    The smaller `alpha`, the more unlike the clients; from about 100 on they are nearly alike. A
    client that drew nothing is given one example of the client with the most.

    Raises `ConfigError` for more clients than examples, no client, or an alpha that is not
    positive and finite.
    """
    check_clients(len(labels), clients)
    if not (alpha > 0 and np.isfinite(alpha)):
        raise ConfigError(f"alpha {alpha}: expected a positive number")
    rng = np.random.default_rng(seed)
    shards: Shards = [[] for _ in range(clients)]
    for members in _by_label(labels):
        shares = rng.dirichlet(np.full(clients, alpha))
        # Cut points from summed shares: each example falls on one side of each.
        cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(int)
        for shard, part in zip(shards, np.split(rng.permutation(members), cuts), strict=True):
            shard.extend(part.tolist())
    _feed_the_empty(shards)
    return [sorted(shard) for shard in shards]


def held_out(keys: Sequence[Hashable], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Examples to train on and examples held out, none of one key on both sides.

    About `share` of the keys, and at least one, is held out: with passages as keys no passage is
    both learned and asked about.

    Raises `ConfigError` for a share outside 0 to 1, or fewer than two keys.
    """
    distinct = list(dict.fromkeys(keys))
    if not 0 < share < 1 or len(distinct) < 2:
        raise ConfigError(f"a share of {share} of {len(distinct)} keys leaves a side empty")
    count = min(max(1, round(share * len(distinct))), len(distinct) - 1)
    order = np.random.default_rng(seed).permutation(len(distinct))
    out = {distinct[number] for number in order[:count]}
    return (
        [number for number, key in enumerate(keys) if key not in out],
        [number for number, key in enumerate(keys) if key in out],
    )


def held_out_count(keys: Sequence[Hashable], count: int, seed: int) -> tuple[list[int], list[int]]:
    """Examples to train on, and `count` held out, none of one key on both sides.

    Keys are held out one after another until they have as many examples; what they have more is on
    neither side.

    Raises `ConfigError` if nothing is left to train on, or there are not as many.
    """
    distinct = list(dict.fromkeys(keys))
    out: set[Hashable] = set()
    sizes = Counter(keys)
    held = 0
    for number in np.random.default_rng(seed).permutation(len(distinct)):
        if held >= count:
            break
        out.add(distinct[number])
        held += sizes[distinct[number]]
    kept = [number for number, key in enumerate(keys) if key not in out]
    if held < count or not kept:
        raise ConfigError(f"{count} examples of {len(keys)} held out leave none to train on")
    return kept, [number for number, key in enumerate(keys) if key in out][:count]


def check_clients(examples: int, clients: int) -> None:
    """Raises `ConfigError` for more clients than examples, or none."""
    if not 1 <= clients <= examples:
        raise ConfigError(f"{clients} clients for {examples} examples: each must have at least one")


def _by_label(labels: Sequence[Hashable]) -> list[list[int]]:
    classes: dict[Hashable, list[int]] = {}
    for number, label in enumerate(labels):
        classes.setdefault(label, []).append(number)
    return list(classes.values())


def _feed_the_empty(shards: Shards) -> None:
    for shard in shards:
        if not shard:
            shard.append(max(shards, key=len).pop())
