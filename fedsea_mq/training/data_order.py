"""Which examples a client's next step takes: from seed, member and position alone.

So a run that goes on needs to know one number, how many examples it has taken, to take the same
ones as the undisturbed run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedsea_mq.training.seeds import derived_seed


@dataclass(frozen=True, slots=True)
class DataOrder:
    """`examples` of one member, all of them once an epoch, each epoch shuffled anew."""

    examples: int
    seed: int
    member: str

    def take(self, position: int, count: int) -> list[int]:
        """The numbers of `count` examples after the first `position` that were taken."""
        taken = []
        for at in range(position, position + count):
            epoch, place = divmod(at, self.examples)
            order = _shuffled(self.examples, derived_seed(self.seed, "order", self.member, epoch))
            taken.append(int(order[place]))
        return taken


@lru_cache(maxsize=4)
def _shuffled(examples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(examples)


def micro_batches(lengths: Sequence[int], most: int, positions: int) -> list[slice]:
    """One step's sequences as batches of at most `most` in a row, and of at most `positions`.

    Gradients add up over a step, so where it is cut changes rounding alone. A sequence that is
    longer than `positions` stands alone.
    """
    batches, start, total = [], 0, 0
    for number, length in enumerate(lengths):
        full = number - start == most or total + length > positions
        if full and number > start:
            batches.append(slice(start, number))
            start, total = number, 0
        total += length
    batches.append(slice(start, len(lengths)))
    return batches
