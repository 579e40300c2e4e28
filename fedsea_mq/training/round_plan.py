"""The rules that the rounds of a run follow, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from fedsea_mq.errors import ConfigError

MAX_CLIENTS: Final = 1024


@dataclass(frozen=True, slots=True, order=True)
class RoundId:
    """The number of a round, from 0, and of its attempt, from 0."""

    number: int
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """How many rounds, and the rules of each.

    No round begins before `min_clients` are there. Of all that are, `ceil(fraction * joined)` are
    sampled, at least `min_updates`. `quorum` is the share of those sampled whose answers close the
    round at once. A failed attempt is repeated until there were `max_attempts` of one round.
    """

    rounds: int
    local_steps: int
    seed: int
    min_clients: int = 2
    min_updates: int = 2
    fraction: float = 1.0
    quorum: float = 1.0
    training_s: float = 600.0
    aggregation_s: float = 60.0
    max_attempts: int = 3

    def __post_init__(self) -> None:
        """Raises `ConfigError` if no round could follow the plan."""
        if min(self.rounds, self.local_steps, self.min_updates, self.max_attempts) < 1:
            raise ConfigError("rounds, local_steps, min_updates and max_attempts must be 1 or more")
        if not self.min_updates <= self.min_clients <= MAX_CLIENTS:
            raise ConfigError(
                f"min_clients {self.min_clients} must be of min_updates {self.min_updates} "
                f"to {MAX_CLIENTS}"
            )
        if not (0.0 <= self.fraction <= 1.0 and 0.0 < self.quorum <= 1.0):
            raise ConfigError("fraction and quorum must be shares of 1")
        if not (0.0 < self.training_s < math.inf and 0.0 < self.aggregation_s < math.inf):
            raise ConfigError("training_s and aggregation_s must be positive and finite")

    def sampled_of(self, joined: int) -> int:
        """How many are sampled of so many."""
        return min(joined, max(self.min_updates, _ceil(self.fraction * joined)))

    def enough_of(self, sampled: int) -> int:
        """How many answers close a round at once."""
        return max(self.min_updates, _ceil(self.quorum * sampled))


def _ceil(share: float) -> int:
    """Rounded up, but for what is a whole number and a rounding error."""
    return math.ceil(share - 1e-9)
