"""What waits goes into the next step, in order of arrival, within the budget."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fedsea_mq.serving.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Piece:
    name: int
    positions: int


def steps(budget: int, sizes: list[int]) -> list[list[int]]:
    """The sizes of the work of each step, until nothing waits."""
    scheduler: Scheduler[Piece] = Scheduler(budget)
    for name, size in enumerate(sizes):
        scheduler.add(Piece(name, size))
    planned = []
    while len(scheduler):
        planned.append([piece.positions for piece in scheduler.next_step()])
    return planned


def test_given_nothing_waiting_then_the_step_is_empty() -> None:
    assert Scheduler[Piece](8).next_step() == []


def test_decodes_of_many_sessions_share_a_step() -> None:
    assert steps(8, [1] * 8) == [[1] * 8]


def test_the_budget_bounds_a_step() -> None:
    assert steps(8, [4, 4, 1, 7, 1]) == [[4, 4], [1, 7], [1]]


def test_work_larger_than_the_budget_gets_a_step_of_its_own() -> None:
    assert steps(8, [1, 100, 1, 1]) == [[1], [100], [1, 1]]


def test_nobody_overtakes() -> None:
    assert steps(8, [5, 5, 1]) == [[5], [5, 1]]


@given(st.integers(1, 64), st.lists(st.integers(1, 100), max_size=60))
def test_all_work_is_planned_once_in_order_and_within_the_budget(
    budget: int, sizes: list[int]
) -> None:
    planned = steps(budget, sizes)
    assert [size for step in planned for size in step] == sizes
    assert all(sum(step) <= budget or len(step) == 1 for step in planned)
    for step, following in pairwise(planned):
        assert sum(step) + following[0] > budget  # a step is as full as it can be
