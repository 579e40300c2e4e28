"""What lengths alone give away, which no noise changes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True, slots=True)
class Told:
    """Of `texts` that an attacker holds possible, the share that its length singles out.

    `bits` of the `of_bits` that it takes to name one are told by the length, in the mean.
    """

    texts: int
    singled_out: float
    bits: float
    of_bits: float


def told_by_lengths(lengths: Sequence[Hashable]) -> Told:
    """For texts of these lengths in tokens, or several lengths each; all as likely as another."""
    counts = Counter(lengths)
    total = len(lengths)
    return Told(
        texts=total,
        singled_out=fmean(counts[length] == 1 for length in lengths),
        bits=fmean(math.log2(total / counts[length]) for length in lengths),
        of_bits=math.log2(total),
    )
