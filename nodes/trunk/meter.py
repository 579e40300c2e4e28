"""What a node does now, from the running totals of its batcher."""

from __future__ import annotations

from fedsea_mq.serving.batcher import StepStats


class Meter:
    """Rates since it was last read, from a batcher's running totals."""

    def __init__(self, stats: StepStats, now: float) -> None:
        self._stats = stats
        self._before = (now, 0, 0, 0, 0.0)

    def rates(self, now: float) -> dict[str, float]:
        """As the fields of a `Load`: since the call before."""
        stats, (then, steps, sessions, positions, busy_s) = self._stats, self._before
        self._before = (now, stats.steps, stats.sessions, stats.positions, stats.busy_s)
        seconds, new_steps = max(now - then, 1e-9), stats.steps - steps
        return {
            "positions_per_s": (stats.positions - positions) / seconds,
            "mean_batch": (stats.sessions - sessions) / new_steps if new_steps else 0.0,
            "busy_share": min(1.0, (stats.busy_s - busy_s) / seconds),
        }
