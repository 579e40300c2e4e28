"""What the gateway's requests have cost so far, and how fast tokens come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from fedsea_mq.transport.requests import Traffic
from nodes.client import GenerationStats

WINDOW_S: Final = 10
Clock = Callable[[], float]


class Meter:
    """Sums over all generations, those that run included."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._running: dict[int, GenerationStats] = {}
        self._ended = Traffic()
        # A second and the tokens that came in it, the newest last.
        self._seconds: deque[list[int]] = deque(maxlen=WINDOW_S + 1)
        self.tokens = 0

    @contextmanager
    def counting(self, stats: GenerationStats) -> Iterator[None]:
        """Count what a generation sends and receives while it runs, and keep it."""
        self._running[id(stats)] = stats
        try:
            yield
        finally:
            del self._running[id(stats)]
            self._ended += stats.traffic

    def token(self) -> None:
        """One more."""
        self.tokens += 1
        second = int(self._clock())
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1][1] += 1
        else:
            self._seconds.append([second, 1])

    @property
    def traffic(self) -> Traffic:
        """Bytes to and from broker and trunk nodes."""
        return sum((stats.traffic for stats in self._running.values()), self._ended)

    @property
    def tokens_per_s(self) -> float:
        """Over the last `WINDOW_S` whole seconds."""
        now = int(self._clock())
        return sum(n for second, n in self._seconds if now - WINDOW_S <= second < now) / WINDOW_S
