"""The scheduler under simulated arrivals: thousands of patterns, the same promises in each."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from fedsea_mq.serving.scheduler import Owner, Scheduler, StepLimits, Urgency


@dataclass(frozen=True, slots=True)
class Piece:
    client: int
    session: int
    number: int
    positions: int
    urgency: Urgency
    deadline: float = math.inf

    @property
    def owner(self) -> Owner:
        return Owner(bytes([self.client]), bytes([self.client, self.session]), self.urgency)


@dataclass
class Trace:
    """What a run did, step by step."""

    added: list[Piece] = field(default_factory=list)
    steps: list[list[tuple[Piece, int, int]]] = field(default_factory=list)
    waiting_before: list[int] = field(default_factory=list)


arrivals = st.lists(
    st.tuples(
        st.integers(0, 5),  # client
        st.integers(0, 4),  # session
        st.one_of(st.just(1), st.integers(1, 8), st.integers(1, 300)),  # positions
        st.sampled_from(Urgency),
        st.integers(0, 3),  # steps until the next one arrives
    ),
    max_size=40,
)


def run(pattern: list[tuple[int, int, int, Urgency, int]], budget: int, allowed: int) -> Trace:
    """Feed the pattern in and plan a step a tick until nothing waits."""
    scheduler: Scheduler[Piece] = Scheduler(StepLimits(budget, patience_s=20.0))
    trace, now = Trace(), 0.0
    numbers: Iterator[int] = iter(range(len(pattern)))

    def step() -> None:
        nonlocal now
        trace.waiting_before.append(len(scheduler))
        shares = scheduler.plan(now, lambda *_: allowed)
        trace.steps.append([(share.work, share.start, share.count) for share in shares])
        now += 1.0

    for client, session, positions, urgency, pause in pattern:
        piece = Piece(client, session, next(numbers), positions, urgency)
        scheduler.add(piece, now)
        trace.added.append(piece)
        for _ in range(pause):
            step()
    while len(scheduler):
        step()
    return trace


@settings(max_examples=2000, deadline=None)
@given(arrivals, st.integers(1, 64), st.integers(1, 64))
def test_every_position_is_planned_once_in_order_and_within_the_budget(
    pattern: list[tuple[int, int, int, Urgency, int]], budget: int, allowed: int
) -> None:
    trace = run(pattern, budget, allowed)
    done: dict[Piece, int] = defaultdict(int)
    finished: dict[bytes, list[int]] = defaultdict(list)
    for waiting, step in zip(trace.waiting_before, trace.steps, strict=True):
        assert sum(count for _, _, count in step) <= budget
        assert bool(step) == bool(waiting)  # work-conserving: a step is empty if nothing waits
        sessions = [piece.owner.session for piece, _, _ in step]
        assert len(set(sessions)) == len(sessions)
        for piece, start, count in step:
            assert count >= 1
            assert start == done[piece]
            done[piece] += count
            if done[piece] == piece.positions:
                finished[piece.owner.session].append(piece.number)
    assert all(done[piece] == piece.positions for piece in trace.added)
    assert all(numbers == sorted(numbers) for numbers in finished.values())


@settings(max_examples=300, deadline=None)
@given(arrivals, st.integers(4, 64))
def test_a_step_is_as_full_as_what_waits_allows(
    pattern: list[tuple[int, int, int, Urgency, int]], budget: int
) -> None:
    """With no bound on long work, room is left only if every ready session had all it wanted."""
    trace = run(pattern, budget, 1 << 20)
    left = {piece: piece.positions for piece in trace.added}
    for step in trace.steps:
        for piece, _, count in step:
            left[piece] -= count
        if 0 < sum(count for _, _, count in step) < budget:
            assert all(left[piece] == 0 for piece, _, _ in step)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 6), st.integers(1, 24), st.integers(1, 40), st.data())
def test_nobody_starves_under_a_flood(
    clients: int, crowd: int, budget: int, data: st.DataObject
) -> None:
    """One client floods with urgent decodes; everyone else's single piece is done all the same."""
    scheduler: Scheduler[Piece] = Scheduler(StepLimits(budget, patience_s=10.0))
    flood = [Piece(9, n, n, 1, Urgency.INTERACTIVE) for n in range(crowd)]
    urgencies = data.draw(st.lists(st.sampled_from(Urgency), min_size=clients, max_size=clients))
    sizes = data.draw(st.lists(st.sampled_from((1, 40)), min_size=clients, max_size=clients))
    patient = {
        Piece(client, 0, 1000 + client, size, urgency)
        for client, (size, urgency) in enumerate(zip(sizes, urgencies, strict=True))
    }
    for piece in (*flood, *patient):
        scheduler.add(piece, 0.0)
    remaining, now = dict.fromkeys(patient, True), 0.0
    # Patience, then a turn for every client and chunk: far fewer steps than this.
    for _ in range(20 + 60 * (clients + 1)):
        for share in scheduler.plan(now, lambda *_: 4):
            if share.work in remaining and share.completes:
                remaining[share.work] = False
            if share.work.client == 9:
                scheduler.add(share.work, now)
        now += 1.0
    assert not any(remaining.values())
