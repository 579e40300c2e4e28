"""What rank 0 tells the others of a step: whose positions, over which caches, and what to forget.

A plan is whole numbers in one tensor, behind a header of two that say how many. Caches are known
by number: they are made where a number first comes up, and freed where it is listed. A plan without
spans only frees, and shows that everybody is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Final

import torch

from fedsea_mq.errors import RankLost
from fedsea_mq.tensor_parallel.rank_group import RankGroup

_STOP: Final = -1
_HEADER: Final = 2
# A node has some thousand sessions at most, and a step as many spans.
_MOST: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class PlannedSpan:
    """`count` positions from `start` on over a cache of `max_positions`.

    `adapter` is the place of its adapter among those held, in their agreed order, or -1.
    """

    cache: int
    max_positions: int
    start: int
    count: int
    adapter: int


_FIELDS: Final = len(PlannedSpan.__slots__)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The spans of a step, in the order of their rows, and the caches freed since the last one."""

    spans: Sequence[PlannedSpan]
    freed: Sequence[int]

    @property
    def rows(self) -> int:
        """Positions of all spans."""
        return sum(span.count for span in self.spans)


def send_plan(group: RankGroup, plan: StepPlan) -> None:
    """From rank 0 to all others. Raises `RankLost`."""
    group.broadcast(_numbers([len(plan.spans), len(plan.freed)]))
    body = [number for span in plan.spans for number in astuple(span)] + list(plan.freed)
    if body:
        group.broadcast(_numbers(body))


def send_stop(group: RankGroup) -> None:
    """Let all others end. Raises `RankLost`."""
    group.broadcast(_numbers([_STOP, 0]))


def receive_plan(group: RankGroup) -> StepPlan | None:
    """What rank 0 sends; None if it says stop.

    Raises:
        RankLost: a rank is gone, or what came is no plan.
    """
    spans, freed = _received(group, _HEADER)
    if spans == _STOP:
        return None
    if not (0 <= spans <= _MOST and 0 <= freed <= _MOST):
        raise RankLost("what rank 0 sent is no plan of a step")
    body = _received(group, spans * _FIELDS + freed)
    rows = [body[at : at + _FIELDS] for at in range(0, spans * _FIELDS, _FIELDS)]
    return StepPlan([PlannedSpan(*row) for row in rows], body[spans * _FIELDS :])


def _numbers(numbers: Sequence[int]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def _received(group: RankGroup, count: int) -> list[int]:
    numbers = torch.empty(count, dtype=torch.int64)
    if count:
        group.broadcast(numbers)
    received: list[int] = numbers.tolist()
    return received
