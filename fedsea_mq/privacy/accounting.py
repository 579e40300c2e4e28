"""(epsilon, delta) of the states that one client sends, where it can be said.

Each state is clipped to an L2 norm of `clip` and carries Gaussian noise of its own, `sigma` on each
element. Another token at one place changes the state of that position and of all that come after
it, each by at most 2 clip. For k such positions, sent with r independent draws of noise, all that
is sent is one Gaussian mechanism of

    sensitivity 2 clip sqrt(k r), standard deviation sigma

also where later tokens are chosen by what came back, because Gaussian mechanisms compose
adaptively to one whose squared ratio of sensitivity to sigma is the sum of theirs. Its epsilon is
that of Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy" (ICML 2018,
arXiv 1805.06530), theorem 8, as dp-accounting computes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fedsea_mq.errors import ConfigError
from fedsea_mq.privacy.noise import NoiseSource

ADJACENCY: Final = (
    "one token at one position is another one, in every sequence that has the same beginning, "
    "and the other one comes after that beginning in no other sequence; lengths are the same"
)

_MAX_RATIO: Final = 1e6


@dataclass(frozen=True, slots=True)
class Privacy:
    """What can be said of the states that were sent, and under which conditions.

    `clip` and `sigma` are absolute: an L2 norm, and a standard deviation on each element, in the
    direction that has the least noise. `positions` are the most whose states one change of a
    token changes, `releases` how many independent draws each was sent with. An epsilon above about
    5e11 is given as infinity.
    """

    epsilon: float
    delta: float
    adjacency: str
    clip: float
    sigma: float
    positions: int
    releases: int


def privacy_of(noise: NoiseSource, *, positions: int, delta: float, releases: int = 1) -> Privacy:
    """For `positions` affected at most, each sent with `releases` independent draws.

    What is sent again as the same bytes is one release. Another process is another one, and so is
    another adapter on the head. With `noise.shape`, sigma is that of the least noisy direction.

    Raises:
        ConfigError: nothing is clipped; there is no noise, or none in some direction; a count is
            below 1, `delta` not between 0 and 1; or dp-accounting is not installed.
    """
    if noise.clip is None:
        raise ConfigError("no epsilon without noise.clip: how far states can differ has no bound")
    sigma = noise.std * (1.0 if noise.shape is None else noise.shape.smallest)
    if not sigma > 0:
        raise ConfigError("no epsilon without noise in every direction: see noise.mode and .shape")
    if positions < 1 or releases < 1:
        raise ConfigError(f"expected 1 or more, found positions {positions}, releases {releases}")
    if not 0 < delta < 1:
        raise ConfigError(f"delta: expected between 0 and 1, found {delta}")
    ratio = 2 * noise.clip * math.sqrt(positions * releases) / sigma
    # Beyond that the library's search loses the digits that count, and may say too little.
    epsilon = _epsilon(1 / ratio, delta) if ratio < _MAX_RATIO else math.inf
    return Privacy(epsilon, delta, ADJACENCY, noise.clip, sigma, positions, releases)


def privacy_of_sessions(
    noise: NoiseSource,
    sequences: Iterable[Sequence[int]],
    *,
    delta: float,
    public: int = 0,
    processes: int = 1,
) -> Privacy:
    """For all token sequences that were sent, each turn, guess and regenerated answer included.

    The first `public` positions are no secret. `processes` client nodes sent all of it, each with
    a key of its own. Raises as `privacy_of`.
    """
    positions = affected_positions(sequences, public)
    return privacy_of(noise, positions=positions, delta=delta, releases=processes)


def privacy_of_training(
    noise: NoiseSource,
    sequences: Iterable[Sequence[int]],
    *,
    delta: float,
    head_trains: bool,
    sends_gradients: bool,
    public: int = 0,
    processes: int = 1,
) -> Privacy:
    """For the examples of a member; how many epochs is all one, where there is an answer at all.

    `sends_gradients` is whether the tail's gradient goes to the trunk, as it does whenever a step
    is taken. What the aggregator sees is not in it.

    Raises:
        ConfigError: as `privacy_of`, and where the head trains or gradients are sent.
    """
    if head_trains:
        raise ConfigError(
            "no epsilon where the head trains: an example has the same noise in every epoch, "
            "and the difference of its states in two epochs goes out without any"
        )
    if sends_gradients:
        raise ConfigError(
            "no epsilon where gradients are sent: they follow from the text, are not clipped, and "
            "training.gradient_noise is measured by the gradient itself"
        )
    return privacy_of_sessions(noise, sequences, delta=delta, public=public, processes=processes)


def affected_positions(sequences: Iterable[Sequence[int]], public: int = 0) -> int:
    """The most positions whose states one other token changes; equal beginnings count once.

    Equal beginnings are sent with equal noise. The worst place is the first that is not public.
    """
    nodes: dict[tuple[int, int], int] = {}
    counts: dict[int, int] = {}
    for tokens in sequences:
        node, first = 0, 0
        for position, token in enumerate(tokens):
            known = (node, token) in nodes
            node = nodes.setdefault((node, token), len(nodes) + 1)
            if position == public:
                first = node
            if position >= public and not known:
                counts[first] = counts.get(first, 0) + 1
    return max(counts.values(), default=0)


def _epsilon(sigma_over_sensitivity: float, delta: float) -> float:
    try:
        from dp_accounting import get_epsilon_gaussian
    except ImportError as error:
        raise ConfigError(
            "an epsilon needs dp-accounting: install fedsea_mq with the extra audit"
        ) from error
    return float(get_epsilon_gaussian(sigma_over_sensitivity, delta))
