"""Steps of serving and slices of training take turns on one thread. Pure: durations are arguments.

While both are ready, each gets about half of the thread's time, and neither saves up: what serving
waits for is at most about as long as a step of its own took, plus the slice that was let in last.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Turns:
    """Who goes next, from how long each took last."""

    # Seconds by which slices are ahead; steps, where it is negative.
    _ahead_s: float = 0.0

    def slice_may_run(self, *, step_ready: bool) -> bool:
        """Whether it is a slice's turn; always, where no step is ready."""
        return not step_ready or self._ahead_s < 0.0

    def step_took(self, seconds: float) -> None:
        """A step of serving ran."""
        self._ahead_s = max(self._ahead_s, 0.0) - seconds

    def slice_took(self, seconds: float) -> None:
        """A slice ran."""
        self._ahead_s = min(self._ahead_s, 0.0) + seconds
