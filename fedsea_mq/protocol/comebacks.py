"""When those who are refused may ask again: one after another, not all at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(slots=True)
class Comebacks:
    """Spaces out second asks, so that answering them costs the same however many were refused.

    With a fixed pause, a thousand clients that wait for room ask twice a second each, and answering
    them is what the machine is busy with.
    """

    soonest_s: float = 0.5
    latest_s: float = 10.0
    apart_s: float = 0.005
    _next_at: float = field(default=-math.inf, init=False)

    def pause_s(self, now: float) -> float:
        """How long whoever is refused now should wait."""
        spaced = max(now + self.soonest_s, self._next_at)
        at = min(spaced, now + self.latest_s)
        self._next_at = at + self.apart_s
        return at - now
