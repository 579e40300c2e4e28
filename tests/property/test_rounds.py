"""Rounds under random joins, departures, updates, failures and time: the same promises in each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from fedsea_mq.training.round_plan import RoundId, RoundPlan
from fedsea_mq.training.rounds import (
    Closed,
    Event,
    Finished,
    GaveUp,
    Phase,
    Repeated,
    Rounds,
    Started,
    Verdict,
)

CLIENTS = [bytes([65 + n]) for n in range(6)]

plans = st.builds(
    lambda clients, updates, **rest: RoundPlan(
        min_clients=clients, min_updates=min(clients, updates), **rest
    ),
    clients=st.integers(1, 5),
    updates=st.integers(1, 5),
    rounds=st.integers(1, 4),
    local_steps=st.just(3),
    seed=st.integers(0, 5),
    fraction=st.sampled_from((0.0, 0.3, 0.5, 1.0)),
    quorum=st.sampled_from((0.4, 0.75, 1.0)),
    training_s=st.just(10.0),
    aggregation_s=st.just(4.0),
    max_attempts=st.integers(1, 3),
)
clients = st.sampled_from(CLIENTS)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("join"), clients),
        st.tuples(st.just("leave"), clients),
        # An update of the open round, or of an old or future one by this much.
        st.tuples(st.just("update"), clients, st.sampled_from((0, 0, 0, 0, -1, 1)), st.booleans()),
        st.tuples(st.just("aggregated"), st.sampled_from((0, 0, -1))),
        st.tuples(st.just("void"), st.sampled_from((0, 0, -1))),
        st.tuples(st.just("excuse"), clients, st.sampled_from((0, 0, -1))),
        st.tuples(st.just("wait"), st.sampled_from((0.5, 3.0, 6.0, 30.0))),
    ),
    max_size=50,
)


@dataclass
class Watch:
    """Follows the rounds from outside and holds them to their promises, event by event."""

    rounds: Rounds
    started: Started | None = None
    counted: list[bytes] = field(default_factory=list)
    closed: set[RoundId] = field(default_factory=set)
    done: list[RoundId] = field(default_factory=list)
    attempts: list[RoundId] = field(default_factory=list)
    ended: bool = False

    def see(self, events: list[Event], now: float) -> None:
        for event in events:
            assert not self.ended
            match event:
                case Started():
                    assert event.round not in self.attempts
                    assert self.attempts == sorted(self.attempts)
                    assert len(set(event.clients)) == len(event.clients)
                    assert len(event.clients) >= self.rounds.plan.min_updates
                    assert event.deadline == now + self.rounds.plan.training_s
                    self.attempts.append(event.round)
                    self.started, self.counted = event, []
                case Closed():
                    assert self.started is not None
                    assert event.round == self.started.round
                    assert event.round not in self.closed
                    assert sorted(event.counted) == sorted(self.counted)
                    assert len(event.counted) >= self.rounds.plan.min_updates
                    assert {*event.counted, *event.missing} == set(self.started.clients)
                    assert not {*event.counted} & {*event.missing}
                    self.closed.add(event.round)
                case Repeated() | GaveUp():
                    assert event.round == self.attempts[-1]
                    last = event.round.attempt + 1 == self.rounds.plan.max_attempts
                    assert isinstance(event, GaveUp) == last
                    self.ended = last
                case Finished():
                    assert len(self.done) == self.rounds.plan.rounds
                    self.ended = True

    def count(self, client: bytes, round_id: RoundId, verdict: Verdict) -> None:
        if verdict is Verdict.COUNTED:
            assert self.started is not None
            assert round_id == self.started.round
            assert round_id not in self.closed
            assert client in self.started.clients
            assert client not in self.counted
            self.counted.append(client)


def shifted(round_id: RoundId, by: int, attempt_too: bool) -> RoundId:
    number = max(0, round_id.number + (0 if attempt_too else by))
    return RoundId(number, max(0, round_id.attempt + (by if attempt_too else 0)))


def play(watch: Watch, step: tuple, now: float) -> float:
    rounds = watch.rounds
    here = watch.attempts[-1] if watch.attempts else RoundId(0)
    match step:
        case ("join", client):
            watch.see(rounds.join(client, now), now)
        case ("leave", client):
            watch.see(rounds.leave(client, now), now)
        case ("update", client, by, attempt_too):
            named = shifted(here, by, attempt_too)
            # Events before the update's own are of the deadline; there are none: the clock ticked.
            verdict, events = rounds.update(client, named, now)
            watch.count(client, named, verdict)
            watch.see(events, now)
        case ("aggregated", by):
            named = shifted(here, by, attempt_too=False)
            verdict, events = rounds.aggregated(named, now)
            if verdict is Verdict.COUNTED:
                assert named in watch.closed
                assert named.number == len(watch.done)
                watch.done.append(named)
            watch.see(events, now)
        case ("excuse", client, by):
            named = shifted(here, by, attempt_too=False)
            watch.see(rounds.excuse(client, named, now), now)
        case ("void", by):
            watch.see(rounds.void(shifted(here, by, attempt_too=False), now), now)
        case ("wait", seconds):
            now += seconds
            watch.see(rounds.tick(now), now)
            assert rounds.deadline is None or rounds.deadline > now
    return now


@settings(max_examples=1200, deadline=None)
@given(plans, steps)
def test_updates_count_once_and_rounds_close_once_and_in_time(
    plan: RoundPlan, pattern: list[tuple]
) -> None:
    watch, now = Watch(Rounds(plan)), 0.0
    for step in pattern:
        now = play(watch, step, now)
    assert [done.number for done in watch.done] == list(range(len(watch.done)))
    assert watch.rounds.progress.done == len(watch.done)
    assert watch.ended == (watch.rounds.phase in (Phase.FINISHED, Phase.FAILED))


@settings(max_examples=500, deadline=None)
@given(plans, steps)
def test_with_willing_clients_and_time_every_run_ends(
    plan: RoundPlan, pattern: list[tuple]
) -> None:
    """Whatever came before: once all are there and answer, the rounds go on to the end."""
    watch, now = Watch(Rounds(plan)), 0.0
    for step in pattern:
        now = play(watch, step, now)
    for client in CLIENTS:
        now = play(watch, ("join", client), now)
    # An open attempt may have been spoilt already; each one after it is answered by all.
    for _ in range(plan.rounds * plan.max_attempts + 1):
        for client in sorted(watch.rounds.owing):
            now = play(watch, ("update", client, 0, False), now)
        now = play(watch, ("aggregated", 0), now)
    assert watch.ended
    failed = watch.rounds.phase is Phase.FAILED
    assert failed or len(watch.done) == plan.rounds


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 9))
def test_every_client_has_had_its_turn_after_as_few_rounds_as_can_be(
    joined: int, sampled: int, seed: int
) -> None:
    sampled = min(joined, sampled)
    everyone = [bytes([n]) for n in range(joined)]
    rounds = Rounds(RoundPlan(100, 1, seed, min_clients=joined, min_updates=sampled, fraction=0.0))
    events = [event for client in everyone for event in rounds.join(client, 0.0)]
    turns: list[bytes] = []
    for _ in range(math.ceil(joined / sampled)):
        (started,) = events
        assert isinstance(started, Started)
        turns.extend(started.clients)
        for client in started.clients:
            rounds.update(client, started.round, 0.0)
        events = rounds.aggregated(started.round, 0.0)[1]
    assert set(turns) == set(everyone)
    assert len(set(turns[:joined])) == joined  # nobody a second time before everybody once


@settings(max_examples=200, deadline=None)
@given(st.permutations(CLIENTS), st.permutations(CLIENTS), st.integers(0, 99))
def test_the_sample_does_not_depend_on_the_order_of_joining(
    one: list[bytes], other: list[bytes], seed: int
) -> None:
    def sample(order: list[bytes]) -> tuple[bytes, ...]:
        rounds = Rounds(RoundPlan(2, 1, seed, min_clients=6, min_updates=3, fraction=0.0))
        (started,) = [event for client in order for event in rounds.join(client, 0.0)]
        assert isinstance(started, Started)
        return started.clients

    assert sample(one) == sample(other)
