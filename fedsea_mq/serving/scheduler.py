"""Which waiting work goes into the next step. Pure: no clock, socket or tensor.

First come, first served under a budget of positions a step: whatever waits when a step starts is
batched into it, so decodes of many sessions share one pass over the weights.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Work that costs some positions of a step."""

    @property
    def positions(self) -> int:
        """Positions that the work adds to a step."""
        ...


W = TypeVar("W", bound=Sized)


class Scheduler(Generic[W]):
    """A queue of work, planned a step at a time."""

    def __init__(self, step_positions: int) -> None:
        self._step_positions = step_positions
        self._waiting: deque[W] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, work: W) -> None:
        """Queue work behind what waits already."""
        self._waiting.append(work)

    def next_step(self) -> list[W]:
        """Take the work of the next step, in order of arrival.

        The step stays within the budget, but for a single piece of work that is larger than the
        budget by itself: it gets a step of its own rather than waiting for ever.
        """
        step: list[W] = []
        room = self._step_positions
        while self._waiting and (not step or self._waiting[0].positions <= room):
            work = self._waiting.popleft()
            room -= work.positions
            step.append(work)
        return step
