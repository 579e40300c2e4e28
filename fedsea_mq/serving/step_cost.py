"""What a step costs, learned from the steps that ran."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class StepCost:
    """Seconds of a step as `fixed_s + positions * each_s`, by least squares that forget.

    The fixed part is what reading the weights costs however few positions share it: the time that
    one step instead of two saves.
    """

    memory_steps: float = 200.0
    _weight: float = 0.0
    _positions: float = 0.0
    _seconds: float = 0.0
    _squares: float = 0.0
    _products: float = 0.0

    def observe(self, positions: int, seconds: float) -> None:
        """One step of that many positions took that long."""
        keep = 1.0 - 1.0 / self.memory_steps
        self._weight = self._weight * keep + 1.0
        self._positions = self._positions * keep + positions
        self._seconds = self._seconds * keep + seconds
        self._squares = self._squares * keep + positions * positions
        self._products = self._products * keep + positions * seconds

    @property
    def each_s(self) -> float:
        """Seconds that each further position adds."""
        if not self._weight:
            return 0.0
        mean, mean_s = self._positions / self._weight, self._seconds / self._weight
        variance = self._squares / self._weight - mean * mean
        if variance <= 1e-6 * mean * mean:
            # Steps of one size say nothing of the slope: charge half of them to the positions.
            return 0.5 * mean_s / mean
        slope = (self._products / self._weight - mean * mean_s) / variance
        return min(max(slope, 0.0), mean_s / mean)

    @property
    def fixed_s(self) -> float:
        """Seconds of a step before its first position."""
        if not self._weight:
            return 0.0
        return max(0.0, (self._seconds - self._positions * self.each_s) / self._weight)

    def positions_within(self, seconds: float, most: int) -> int:
        """Further positions that add at most `seconds` to a step, and at most `most`."""
        each = self.each_s
        return most if each <= 0.0 or seconds >= most * each else int(seconds / each)
