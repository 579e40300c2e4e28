"""Times by the million in little memory, that can be merged and read as percentiles."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

# Bins grow by this factor, so a percentile is right to within 1 %.
_GROWTH: Final = 1.01
_LOG_GROWTH: Final = math.log(_GROWTH)
_SMALLEST_S: Final = 1e-6


@dataclass(slots=True)
class Histogram:
    """Seconds, in bins of 1 %."""

    bins: Counter[int] = field(default_factory=Counter)

    def note(self, seconds: float) -> None:
        """Count one time."""
        self.bins[round(math.log(max(seconds, _SMALLEST_S)) / _LOG_GROWTH)] += 1

    def add(self, other: Histogram) -> None:
        """Count all that `other` counted."""
        self.bins.update(other.bins)

    @property
    def count(self) -> int:
        """How many times were noted."""
        return self.bins.total()

    def percentile(self, percent: float) -> float:
        """The least time that `percent` of all are not above; NaN of none."""
        wanted = percent / 100 * self.count
        seen = 0
        for index in sorted(self.bins):
            seen += self.bins[index]
            if seen >= wanted:
                return math.exp(index * _LOG_GROWTH)
        return math.nan
