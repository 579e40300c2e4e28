"""The aggregator under random joins, losses, duplicates, refusals and time: sums stay exact.

Each member sends other numbers in each attempt, so an update that counted twice, in the wrong
attempt or not at all shows in the adapters.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.training_messages import BeginRound, Duty, EndRound, Task
from fedsea_mq.training.aggregation import reports as r
from fedsea_mq.training.round_plan import RoundPlan
from tests.unit.training.adapters import adapters
from tests.unit.training.aggregating import LAYOUT, Aggregating, update_vector, weight_of

MEMBERS = ("ada", "bob", "cyd", "dan")

plans = st.builds(
    lambda clients, updates, **rest: RoundPlan(
        min_clients=clients, min_updates=min(clients, updates), **rest
    ),
    clients=st.integers(1, 4),
    updates=st.integers(1, 4),
    rounds=st.integers(1, 3),
    local_steps=st.just(3),
    seed=st.integers(0, 3),
    fraction=st.sampled_from((0.5, 1.0)),
    quorum=st.sampled_from((0.5, 1.0)),
    training_s=st.just(10.0),
    aggregation_s=st.just(4.0),
    max_attempts=st.integers(1, 4),
)
members = st.sampled_from(MEMBERS)
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(("join", "join", "ask", "leave", "come back")), members),
        # An update of the newest attempt that the member was told of, or of one before it.
        st.tuples(st.just("update"), members, st.sampled_from((0, 0, 0, 1)), st.booleans()),
        st.tuples(st.just("fails"), members),
        st.tuples(st.sampled_from(("work", "work", "trunk", "trunk", "trunk fails", "trunk dies"))),
        st.tuples(st.just("wait"), st.sampled_from((0.3, 2.0, 6.0))),
    ),
    max_size=60,
)


class Watch:
    """Plays the members, and knows what the adapters must be."""

    def __init__(self, plan: RoundPlan) -> None:
        self.run = Aggregating(plan, patient=True)
        self.expected = LAYOUT.flatten(adapters(0))
        self._seen = 0
        self._present = -1, -1
        self._counted: dict[tuple[int, int], list[str]] = {}
        self._done: list[tuple[int, int]] = []

    def play(self, step: tuple) -> None:
        run = self.run
        match step:
            case ("join", member):
                run.enlist(member)
                run.ask(member)
            case ("ask", member):
                run.ask(member)
            case ("leave", member):
                run.leave(member)
            case ("come back", member):
                run.come_back(member)
            case ("update", member, back, poisoned):
                if told := self._told(member)[-1 - back :]:
                    vector = update_vector(member, told[0])
                    run.update(member, told[0], vector * np.float32(np.nan if poisoned else 1))
            case ("fails", member):
                if told := self._told(member):
                    run.ask(member, failed=told[-1])
            case ("work",):
                run.work()
            case ("trunk",):
                run.trunk_answers()
            case ("trunk fails",):
                if (told := run.trunk) is not None:
                    run.trunk = None
                    run.do(run.core.trunk_failed(told.attempt, "it failed", run.now))
            case ("trunk dies",):
                run.do(run.core.trunk_lost(run.now))
            case ("wait", seconds):
                run.wait(seconds)
        self.check()

    def _told(self, member: str) -> list[bytes]:
        """The attempts that a member was told to train in, in whatever session."""
        tasks = [
            frame.body(Task)
            for (session, _), frame in self.run.replies.items()
            if session.startswith(member.encode()) and frame.envelope.kind is Kind.TASK
        ]
        return [task.attempt for task in tasks if task.duty is Duty.TRAIN]

    def check(self) -> None:
        """Follow the events and hold them to the promises."""
        for event in self.run.events[self._seen :]:
            self._see(event)
            self._seen += 1

    def _see(self, event: r.RunEvent) -> None:
        match event:
            case r.RoundBegun(number, attempt, members):
                assert members == tuple(sorted(members))
                assert number == len(self._done)
                self._present = number, attempt
                self._counted[self._present] = []
            case r.UpdateCounted(number, attempt, member):
                assert (number, attempt) == self._present
                assert member not in self._counted[number, attempt]
                self._counted[number, attempt].append(member)
            case r.RoundDone(number, attempt, counted):
                assert (number, attempt) == self._present
                assert list(counted) == sorted(self._counted[number, attempt])
                self._done.append((number, attempt))
                self._move(self.run.attempts[number, attempt], counted)
            case _:
                pass

    def _move(self, attempt: bytes, counted: tuple[str, ...]) -> None:
        vectors = np.array([update_vector(member, attempt) for member in counted], np.float64)
        weights = [weight_of(member) for member in counted]
        mean = np.average(vectors, axis=0, weights=weights)
        self.expected = (self.expected + mean).astype(np.float32)

    def finish(self) -> None:
        """All work is done, and all are willing from now on."""
        run = self.run
        run.patient = False
        run.wait(0.0)
        for member in MEMBERS:
            run.come_back(member)
        for _ in range(run.plan.rounds * run.plan.max_attempts + 1):
            for member in MEMBERS:
                run.ask(member)
            for member in MEMBERS:
                if told := self._told(member):
                    run.update(member, told[-1])
                self.check()
            run.wait(10.0)
            self.check()


@settings(max_examples=150, deadline=None)
@given(plans, steps)
def test_each_round_counts_each_update_once_and_moves_by_the_exact_mean(
    plan: RoundPlan, pattern: list[tuple]
) -> None:
    watch = Watch(plan)
    for step in pattern:
        watch.play(step)
    watch.finish()
    assert watch.run.core.over
    vector = np.frombuffer(watch.run.shared.vector, "<f4")
    np.testing.assert_allclose(vector, watch.expected, rtol=1e-6, atol=1e-7)
    begun = [body.attempt for body in watch.run.told_trunk if isinstance(body, BeginRound)]
    assert len(set(begun)) == len(begun)
    ended = [body for body in watch.run.told_trunk if isinstance(body, EndRound)]
    of_round = {body.round: tuple(body.counted) for body in ended}
    assert all(of_round[event.round] == event.counted for event in watch.run.of(r.RoundDone))
    done = len(watch.run.of(r.RoundDone))
    assert watch.run.states == list(range(done + 1))
    assert bool(watch.run.of(r.RunFinished)) == (done == plan.rounds)
