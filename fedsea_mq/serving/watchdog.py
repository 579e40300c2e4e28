"""Notices that the compute thread has not come back from a piece of work."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from fedsea_mq.errors import StepStuck

_LOOKS: Final = 4


class Watchdog:
    """Times one thread's work; another thread looks whether it takes longer than `patience_s`.

    A thread cannot be stopped from outside, so what is stuck stays so: `is_stuck` remains.
    """

    def __init__(
        self, patience_s: float = math.inf, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._patience_s = patience_s
        self._clock = clock
        # Written by the thread that works, read by the one that looks.
        self._since: float | None = None
        # Which piece of work was looked at last, and how often. A process that is frozen, or whose
        # machine is, does not look either: the time alone would say that it is stuck.
        self._looked_at: float | None = None
        self._looks = 0
        self.is_stuck = False

    @property
    def look_after_s(self) -> float | None:
        """How often to look; None for never."""
        return None if math.isinf(self._patience_s) else self._patience_s / _LOOKS

    @contextmanager
    def working(self) -> Iterator[None]:
        """Around a piece of work."""
        self._since = self._clock()
        try:
            yield
        finally:
            self._since = None

    def look(self) -> None:
        """Raises `StepStuck` if the thread works on one thing for too long."""
        since = self._since
        self._looks = self._looks + 1 if since == self._looked_at else 1
        self._looked_at = since
        if since is None or self._looks <= _LOOKS:
            return
        if self._clock() - since > self._patience_s:
            self.is_stuck = True
            raise StepStuck(f"a step has taken longer than {self._patience_s:g} s")
