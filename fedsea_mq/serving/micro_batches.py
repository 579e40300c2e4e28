"""How large a stage's steps are, so that all stages of a chain have one to compute. Pure.

One step for all sessions would go from stage to stage, and the others would stand idle meanwhile.
So a round of all sessions is divided into as many steps as there are stages.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection


class MicroBatches:
    """Counts the sessions that come round, and says how many of them a step takes.

    `depth` is how many steps of a round are to be under way, each at its stage; 1 for a trunk that
    is whole. Those count that took part in the last two rounds: who pauses is soon forgotten, and
    steps that have become too small grow again.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._steps: deque[frozenset[bytes]] = deque(maxlen=2 * depth)

    def most(self, waiting: Collection[bytes]) -> int | None:
        """The most sessions of a step, with these waiting for one; None for no bound."""
        if self._depth == 1:
            return None
        return math.ceil(len(set(waiting).union(*self._steps)) / self._depth)

    def took(self, sessions: Collection[bytes]) -> None:
        """A step was begun with these."""
        if self._depth > 1:
            self._steps.append(frozenset(sessions))
