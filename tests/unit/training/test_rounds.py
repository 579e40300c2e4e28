"""Rounds: one situation a test."""

from __future__ import annotations

from typing import Any

import pytest

from fedsea_mq.errors import ConfigError, LimitExceeded
from fedsea_mq.training.round_plan import MAX_CLIENTS, RoundId, RoundPlan
from fedsea_mq.training.rounds import (
    Closed,
    Event,
    Finished,
    GaveUp,
    Phase,
    Progress,
    Repeated,
    Rounds,
    Started,
    Verdict,
)

A, B, C, D = b"a", b"b", b"c", b"d"


def plan(**fields: Any) -> RoundPlan:
    given = {"rounds": 2, "local_steps": 5, "seed": 1, "min_clients": 3, "min_updates": 2}
    return RoundPlan(**{**given, "training_s": 60.0, "aggregation_s": 10.0, **fields})


def joined(rounds: Rounds, *clients: bytes, now: float = 0.0) -> list[Event]:
    return [event for client in clients for event in rounds.join(client, now)]


def training(**fields: Any) -> Rounds:
    rounds = Rounds(plan(**fields))
    joined(rounds, A, B, C)
    return rounds


FIRST = RoundId(0)


class TestStarting:
    def test_a_round_begins_when_enough_are_there(self) -> None:
        rounds = Rounds(plan())
        assert joined(rounds, A, B) == []
        (started,) = rounds.join(C, 7.0)
        assert isinstance(started, Started)
        assert (started.round, started.local_steps, started.deadline) == (FIRST, 5, 67.0)
        assert sorted(started.clients) == [A, B, C]
        assert rounds.deadline == 67.0

    def test_joining_twice_is_joining_once(self) -> None:
        rounds = Rounds(plan())
        assert joined(rounds, A, A, A) == []

    def test_who_joins_later_takes_part_in_the_next_round(self) -> None:
        rounds = training(fraction=1.0)
        assert rounds.join(D, 1.0) == []
        assert rounds.task(D) is None
        assert rounds.update(D, FIRST, 2.0)[0] is Verdict.NOT_ASKED
        for client in (A, B, C):
            rounds.update(client, FIRST, 3.0)
        (started,) = rounds.aggregated(FIRST, 4.0)[1]
        assert isinstance(started, Started)
        assert sorted(started.clients) == [A, B, C, D]

    def test_so_many_and_no_more_may_join(self) -> None:
        rounds = Rounds(plan())
        for n in range(MAX_CLIENTS):
            rounds.join(n.to_bytes(2, "big"), 0.0)
        with pytest.raises(LimitExceeded, match="1024"):
            rounds.join(b"one more", 0.0)

    def test_a_client_that_starts_again_is_told_its_task_again(self) -> None:
        rounds = training()
        rounds.leave(A, 1.0)
        assert rounds.task(A) is None
        rounds.join(A, 2.0)
        task = rounds.task(A)
        assert task is not None
        assert task.round == FIRST
        rounds.update(A, FIRST, 3.0)
        assert rounds.task(A) is None


class TestClosing:
    def test_it_closes_when_all_have_answered(self) -> None:
        rounds = training()
        assert rounds.update(A, FIRST, 1.0) == (Verdict.COUNTED, [])
        assert rounds.update(B, FIRST, 1.0) == (Verdict.COUNTED, [])
        verdict, (closed,) = rounds.update(C, FIRST, 2.0)
        assert verdict is Verdict.COUNTED
        assert isinstance(closed, Closed)
        assert (sorted(closed.counted), closed.missing, closed.deadline) == ([A, B, C], (), 12.0)

    def test_it_closes_at_its_quorum(self) -> None:
        rounds = training(quorum=0.6)
        rounds.update(A, FIRST, 1.0)
        (closed,) = rounds.update(C, FIRST, 1.0)[1]
        assert isinstance(closed, Closed)
        assert closed.missing == (B,)

    def test_it_closes_at_its_deadline_and_who_is_late_is_refused_and_sampled_again(self) -> None:
        rounds = training()
        rounds.update(A, FIRST, 1.0)
        rounds.update(B, FIRST, 1.0)
        assert rounds.tick(59.9) == []
        verdict, (closed,) = rounds.update(C, FIRST, 60.0)
        assert verdict is Verdict.LATE
        assert isinstance(closed, Closed)
        assert closed.missing == (C,)
        (started,) = rounds.aggregated(FIRST, 61.0)[1]
        assert isinstance(started, Started)
        assert C in started.clients
        assert rounds.update(C, FIRST, 62.0)[0] is Verdict.LATE

    def test_it_does_not_wait_for_the_vanished_if_there_are_enough(self) -> None:
        rounds = training()
        rounds.update(A, FIRST, 1.0)
        rounds.update(B, FIRST, 1.0)
        (closed,) = rounds.leave(C, 2.0)
        assert isinstance(closed, Closed)
        assert closed.missing == (C,)

    def test_what_the_vanished_had_handed_in_counts(self) -> None:
        rounds = training()
        rounds.update(A, FIRST, 1.0)
        rounds.leave(A, 2.0)
        rounds.update(B, FIRST, 3.0)
        (closed,) = rounds.update(C, FIRST, 3.0)[1]
        assert isinstance(closed, Closed)
        assert sorted(closed.counted) == [A, B, C]

    def test_with_too_few_it_waits_until_the_deadline_for_the_vanished_to_come_back(self) -> None:
        rounds = training(min_updates=3)
        rounds.update(A, FIRST, 1.0)
        rounds.update(B, FIRST, 1.0)
        assert rounds.leave(C, 2.0) == []
        assert rounds.update(C, FIRST, 3.0) == (Verdict.NOT_JOINED, [])
        rounds.join(C, 4.0)
        (closed,) = rounds.update(C, FIRST, 5.0)[1]
        assert isinstance(closed, Closed)

    def test_a_duplicate_changes_nothing(self) -> None:
        rounds = training()
        rounds.update(A, FIRST, 1.0)
        assert rounds.update(A, FIRST, 2.0) == (Verdict.DUPLICATE, [])
        assert rounds.owing == {B, C}

    @pytest.mark.parametrize("named", [RoundId(1), RoundId(0, 1)])
    def test_nobody_is_ahead_of_the_rounds(self, named: RoundId) -> None:
        assert training().update(A, named, 1.0) == (Verdict.NOT_ASKED, [])


class TestRepeating:
    def test_too_few_by_the_deadline_is_another_attempt(self) -> None:
        rounds = training()
        rounds.update(A, FIRST, 1.0)
        repeated, started = rounds.tick(60.0)
        assert repeated == Repeated(FIRST)
        assert isinstance(started, Started)
        assert (started.round, started.deadline) == (RoundId(0, 1), 120.0)
        assert rounds.owing == {A, B, C}
        assert rounds.update(A, FIRST, 61.0)[0] is Verdict.LATE

    def test_it_waits_for_enough_clients_first(self) -> None:
        rounds = training()
        rounds.leave(C, 1.0)
        assert rounds.tick(60.0) == [Repeated(FIRST)]
        assert (rounds.phase, rounds.deadline) == (Phase.WAITING, None)
        (started,) = rounds.join(C, 500.0)
        assert isinstance(started, Started)
        assert started.deadline == 560.0

    def test_attempts_are_bounded(self) -> None:
        rounds = training(max_attempts=2)
        rounds.tick(60.0)
        assert rounds.tick(120.0) == [GaveUp(RoundId(0, 1))]
        assert rounds.phase is Phase.FAILED
        assert rounds.join(D, 121.0) == []
        assert rounds.update(A, RoundId(0, 1), 121.0)[0] is not Verdict.COUNTED

    def test_slow_clients_do_not_hold_up_one_round_for_ever(self) -> None:
        rounds = Rounds(plan(min_clients=4, fraction=0.5))
        (slow,) = joined(rounds, A, B, C, D)
        _, started = rounds.tick(60.0)
        assert isinstance(slow, Started)
        assert isinstance(started, Started)
        assert {*slow.clients, *started.clients} == {A, B, C, D}

    @pytest.mark.parametrize("how", ["it failed", "it took too long"])
    def test_an_aggregate_that_cannot_be_made_repeats_the_round(self, how: str) -> None:
        rounds = training()
        for client in (A, B, C):
            rounds.update(client, FIRST, 1.0)
        if how == "it failed":
            repeated, _ = rounds.void(FIRST, 2.0)
        else:
            assert rounds.tick(10.9) == []
            repeated, _ = rounds.tick(11.0)
        assert repeated == Repeated(FIRST)
        assert rounds.aggregated(FIRST, 12.0)[0] is Verdict.LATE
        assert rounds.progress.done == 0

    def test_an_open_attempt_that_is_void_is_repeated_at_once(self) -> None:
        rounds = training()
        rounds.update(A, FIRST, 1.0)
        repeated, started = rounds.void(FIRST, 2.0)
        assert repeated == Repeated(FIRST)
        assert isinstance(started, Started)
        assert (started.round, started.deadline) == (RoundId(0, 1), 62.0)
        assert rounds.owing == {A, B, C}
        assert rounds.void(FIRST, 3.0) == []

    def test_nothing_is_void_before_a_round_begins(self) -> None:
        rounds = Rounds(plan())
        assert rounds.void(FIRST, 1.0) == []
        assert joined(rounds, A, B, C) != []


class TestExcusing:
    def test_the_others_close_the_round_without_it(self) -> None:
        rounds = training()
        rounds.update(A, FIRST, 1.0)
        rounds.update(B, FIRST, 1.0)
        (closed,) = rounds.excuse(C, FIRST, 2.0)
        assert isinstance(closed, Closed)
        assert (sorted(closed.counted), closed.missing) == ([A, B], (C,))
        assert rounds.update(C, FIRST, 3.0) == (Verdict.LATE, [])

    def test_it_is_not_asked_again_but_is_sampled_for_the_next_round(self) -> None:
        rounds = training()
        assert rounds.excuse(C, FIRST, 1.0) == []
        assert rounds.task(C) is None
        assert rounds.owing == {A, B}
        rounds.update(A, FIRST, 2.0)
        rounds.update(B, FIRST, 2.0)
        (started,) = rounds.aggregated(FIRST, 3.0)[1]
        assert isinstance(started, Started)
        assert C in started.clients

    def test_with_too_few_left_the_round_is_repeated_at_once(self) -> None:
        rounds = training(min_updates=3)
        repeated, started = rounds.excuse(C, FIRST, 1.0)
        assert repeated == Repeated(FIRST)
        assert isinstance(started, Started)
        assert rounds.owing == {A, B, C}

    def test_one_that_is_away_can_be_excused_too(self) -> None:
        rounds = training(min_updates=3)
        rounds.leave(C, 1.0)
        assert rounds.excuse(C, FIRST, 2.0) == [Repeated(FIRST)]

    def test_who_has_answered_or_was_not_asked_is_not_excused(self) -> None:
        rounds = training(min_updates=3)
        rounds.update(A, FIRST, 1.0)
        assert rounds.excuse(A, FIRST, 2.0) == []
        assert rounds.excuse(D, FIRST, 2.0) == []
        assert rounds.excuse(B, RoundId(0, 1), 2.0) == []
        assert rounds.owing == {B, C}


class TestTheEnd:
    def test_after_the_last_round_there_is_nothing_more(self) -> None:
        rounds = training()
        for number in range(2):
            for client in (A, B, C):
                rounds.update(client, RoundId(number), 1.0)
            verdict, events = rounds.aggregated(RoundId(number), 1.0)
            assert verdict is Verdict.COUNTED
        assert events == [Finished()]
        assert rounds.aggregated(RoundId(1), 2.0) == (Verdict.LATE, [])
        assert rounds.update(A, RoundId(1), 2.0) == (Verdict.LATE, [])
        assert rounds.join(D, 2.0) == []
        assert rounds.tick(1e9) == []

    def test_a_run_that_goes_on_from_its_progress_samples_as_the_undisturbed_one(self) -> None:
        everyone = [bytes([n]) for n in range(7)]
        rules = plan(rounds=6, fraction=3 / 7, min_clients=7)

        def go(rounds: Rounds, started: Started | None, until: int) -> list[tuple[bytes, ...]]:
            samples = []
            while started is not None and rounds.progress.done < until:
                samples.append(started.clients)
                for client in started.clients:
                    rounds.update(client, started.round, 0.0)
                (event,) = rounds.aggregated(started.round, 0.0)[1]
                started = event if isinstance(event, Started) else None
            return samples

        def begun(progress: Progress | None) -> tuple[Rounds, Started]:
            rounds = Rounds(rules, progress)
            (started,) = joined(rounds, *everyone)
            assert isinstance(started, Started)
            return rounds, started

        whole = go(*begun(None), until=6)
        rounds, started = begun(None)
        before = go(rounds, started, until=3)
        after = go(*begun(rounds.progress), until=6)
        assert before + after == whole
        assert [len(sample) for sample in whole] == [3] * 6
        assert len(set(whole)) > 1

    def test_a_finished_run_stays_finished(self) -> None:
        rounds = Rounds(plan(), Progress(done=2))
        assert joined(rounds, A, B, C) == []
        assert rounds.phase is Phase.FINISHED


@pytest.mark.parametrize(
    "fields",
    [
        {"rounds": 0},
        {"local_steps": 0},
        {"min_updates": 0},
        {"max_attempts": 0},
        {"min_updates": 4},
        {"min_clients": MAX_CLIENTS + 1},
        {"fraction": 1.1},
        {"fraction": float("nan")},
        {"quorum": 0.0},
        {"training_s": 0.0},
        {"training_s": float("inf")},
        {"aggregation_s": float("nan")},
    ],
    ids=str,
)
def test_plans_that_no_round_could_follow_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        plan(**fields)


def test_clients_that_left_are_not_remembered_without_bound() -> None:
    rounds = Rounds(plan(rounds=10_000, min_clients=1, min_updates=1))
    for n in range(MAX_CLIENTS + 50):
        client = n.to_bytes(2, "big")
        (started,) = rounds.join(client, 0.0)
        assert isinstance(started, Started)
        rounds.update(client, started.round, 0.0)
        rounds.leave(client, 0.0)
        rounds.aggregated(started.round, 0.0)
    assert len(rounds.progress.last_turn) == MAX_CLIENTS + 1
