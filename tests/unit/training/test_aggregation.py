"""The aggregator's core: one situation a test."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsea_mq.errors import (
    FedSeaError,
    FingerprintMismatch,
    MalformedFrame,
    MemberReplaced,
    RunMismatch,
    RunUnknown,
    SessionUnknown,
    UpdateRefused,
)
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Accept, Nothing
from fedsea_mq.protocol.training_messages import Ask, BeginRound, Duty, EndRound, Fate, Task, Update
from fedsea_mq.training.aggregation import reports as r
from fedsea_mq.training.rounds import Phase, Progress
from tests.unit.training.adapters import adapters
from tests.unit.training.aggregating import (
    LAYOUT,
    MAX_NORM,
    OTHER,
    Aggregating,
    enlist,
    plan,
    update_vector,
    weight_of,
)


def training(**fields: Any) -> Aggregating:
    """Two members, in the first round."""
    run = Aggregating(plan(**fields))
    run.join("ada", "bob")
    return run


def refused(frame: Frame | None) -> FedSeaError | None:
    assert frame is not None
    return frame.refusal()


class TestSessions:
    def test_a_member_is_accepted_and_may_ask_that_again(self) -> None:
        run = Aggregating()
        for _ in range(2):
            accept = run.enlist("ada").body(Accept)
            assert (accept.node, accept.lease_ms) == ("aggregator-1", 30_000)
        assert len(run.core.members) == 1

    @pytest.mark.parametrize(
        ("fields", "error"),
        [
            ({"run": "other"}, RunUnknown),
            ({"fingerprint": OTHER}, FingerprintMismatch),
            ({"agreed": OTHER}, RunMismatch),
            ({"role": Role.TRUNK}, RunUnknown),
            ({"member": None}, MalformedFrame),
        ],
    )
    def test_who_is_of_another_run_is_refused(
        self, fields: dict[str, Any], error: type[FedSeaError]
    ) -> None:
        run = Aggregating()
        reply = run.say(run.session("ada"), Kind.ENLIST, enlist(**{"member": "ada", **fields}))
        assert isinstance(refused(reply), error)
        assert not run.core.members.ids

    def test_whose_lease_runs_out_is_told_and_has_left(self) -> None:
        run = training()
        run.wait(20.0)
        assert run.say(run.session("ada"), Kind.RENEW, Nothing()) is not None
        run.wait(20.0)
        assert [event.member for event in run.of(r.MemberLeft)] == ["bob"]
        assert isinstance(run.unasked[0].refusal(), SessionUnknown)
        assert isinstance(refused(run.say(run.session("bob"), Kind.ASK, Ask(3))), SessionUnknown)

    def test_a_new_session_takes_the_place_of_the_old_one(self) -> None:
        run = training()
        old = run.session("ada")
        run.come_back("ada")
        assert isinstance(run.unasked[0].refusal(), MemberReplaced)
        assert run.unasked[0].envelope.session == old
        assert len(run.core.members) == 2

    def test_frames_of_others_are_refused(self) -> None:
        run = training()
        error = refused(run.say(run.session("ada"), Kind.RENEWED, Nothing()))
        assert isinstance(error, MalformedFrame)


class TestARound:
    def test_no_task_before_the_trunk_stands_where_the_round_begins(self) -> None:
        run = Aggregating(patient=True)
        run.join("ada", "bob")
        assert run.trunk is None  # the state before the round is not saved yet
        run.work()
        assert isinstance(run.trunk, BeginRound)
        assert (run.trunk.round, run.trunk.local_steps) == (0, 5)
        assert run.trunk.members == ["ada", "bob"]
        assert run.ask("ada") is None
        run.trunk_answers()
        assert run.task("ada").duty is Duty.TRAIN

    def test_a_task_brings_the_shared_adapters(self) -> None:
        run = training()
        asked = run.ask("bob")
        assert asked is not None
        task, payload = asked
        assert (task.duty, task.round, task.local_steps) == (Duty.TRAIN, 0, 5)
        assert payload == [LAYOUT.flatten(adapters(0)).tobytes()]

    def test_a_held_question_is_answered_when_there_is_something_to_do(self) -> None:
        run = Aggregating()
        run.enlist("ada")
        assert run.ask("ada") is None
        run.join("bob")
        held = [f.body(Task).duty for f in run.replies.values() if f.envelope.kind is Kind.TASK]
        assert held == [Duty.TRAIN, Duty.TRAIN]

    def test_a_held_question_is_answered_with_wait_in_time_even_if_it_is_asked_again(self) -> None:
        run = Aggregating()
        run.enlist("ada")
        question = Frame.build(Kind.ASK, Ask(3), session=run.session("ada"), seq=77)
        for _ in range(4):
            run.send(question)
            assert (run.session("ada"), 77) not in run.replies
            run.wait(0.4)
        reply = run.replies[run.session("ada"), 77]
        assert reply.body(Task).duty is Duty.WAIT

    def test_its_mean_moves_the_adapters_and_the_trunk_averages_the_same_members(self) -> None:
        run = training()
        attempt = run.attempt("ada")
        assert run.fate("bob", attempt, loss=4.0) is Fate.COUNTED
        assert run.fate("ada", attempt, loss=1.0) is Fate.COUNTED
        end = run.told_trunk[1]
        assert isinstance(end, EndRound)
        assert (end.round, end.attempt, end.counted) == (0, attempt, ["ada", "bob"])
        weights = [weight_of("ada"), weight_of("bob")]
        vectors = [update_vector(member, attempt) for member in ("ada", "bob")]
        mean = np.average(np.array(vectors, np.float64), axis=0, weights=weights)
        expected = LAYOUT.flatten(adapters(0)) + mean
        np.testing.assert_allclose(np.frombuffer(run.shared.vector, "<f4"), expected, atol=1e-7)
        assert run.states == [0, 1]
        (closed,) = run.of(r.RoundClosed)
        assert (closed.counted, closed.missing) == (("ada", "bob"), ())
        assert closed.loss == pytest.approx(np.average([1.0, 4.0], weights=weights))

    def test_an_update_counts_once_however_often_it_comes(self) -> None:
        run = training()
        attempt = run.attempt("ada")
        assert run.fate("ada", attempt) is Fate.COUNTED
        assert run.fate("ada", attempt) is Fate.DUPLICATE
        run.update("bob", attempt)
        assert run.fate("ada", attempt) is Fate.DUPLICATE  # the round is done
        assert len(run.of(r.UpdateCounted)) == 2

    def test_an_update_that_comes_again_while_it_is_looked_at_is_looked_at_once(self) -> None:
        run = training()
        attempt = run.attempt("ada")
        run.patient = True
        assert run.update("ada", attempt) is None
        assert run.update("ada", attempt) is None
        assert len(run.pending) == 1

    def test_an_update_of_another_attempt_is_late(self) -> None:
        run = training()
        assert run.fate("ada", bytes(16)) is Fate.LATE

    def test_a_round_that_ends_while_an_update_is_looked_at_does_not_count_it(self) -> None:
        run = training(min_updates=1, min_clients=2)
        attempt = run.attempt("ada")
        run.patient = True
        run.update("ada", attempt)
        run.wait(20.0)
        for member in ("ada", "bob"):
            run.say(run.session(member), Kind.RENEW, Nothing())
        run.now = 600.0
        while run.work():
            pass
        assert not run.of(r.UpdateCounted)
        assert [event.attempt for event in run.of(r.RoundRepeated)] == [0]

    def test_after_the_last_round_all_are_told_and_get_the_adapters(self) -> None:
        run = training(rounds=1)
        attempt = run.attempt("ada")
        run.update("ada", attempt)
        run.update("bob", attempt)
        assert run.core.over
        assert run.core.untold == {"ada", "bob"}
        for member in ("ada", "bob"):
            asked = run.ask(member)
            assert asked is not None
            assert (asked[0].duty, asked[0].round) == (Duty.FINISH, 1)
            # By its attempt all parties name the set that their adapters are of.
            assert asked[0].attempt == attempt == run.shared.now.attempt
            assert asked[1] == [run.shared.vector]
        assert not run.core.untold
        assert run.of(r.RunFinished) == [r.RunFinished(1)]

    def test_a_run_that_goes_on_begins_with_the_round_after_its_state(self) -> None:
        run = Aggregating(progress=Progress(1, 1, {b"ada": 1, b"bob": 1}))
        run.join("ada", "bob")
        assert run.task("ada").round == 1
        assert run.states == [1]

    def test_a_finished_run_that_goes_on_tells_whoever_took_part(self) -> None:
        run = Aggregating(progress=Progress(2, 2, {b"ada": 2, b"cyd": 1}))
        assert run.core.over
        run.enlist("ada")
        assert run.task("ada").duty is Duty.FINISH
        assert run.core.untold == {"cyd"}


class TestLosses:
    def test_a_member_that_comes_back_while_it_owed_makes_the_attempt_void(self) -> None:
        run = training()
        first = run.attempt("ada")
        run.attempt("bob")
        run.come_back("ada")
        assert [event.reason for event in run.of(r.RoundRepeated)] == [
            "ada cannot go on: it has come back"
        ]
        run.ask("ada")
        second = run.attempt("bob")
        assert second != first
        assert run.fate("bob", first) is Fate.LATE

    def test_with_enough_others_the_round_goes_on_without_it(self) -> None:
        run = Aggregating(plan(min_clients=3))
        run.join("ada", "bob", "cyd")
        attempt = run.attempt("cyd")
        run.come_back("cyd")
        assert run.ask("cyd") is None
        run.update("ada", attempt)
        run.update("bob", attempt)
        assert [event.counted for event in run.of(r.RoundDone)] == [("ada", "bob")]
        assert run.task("cyd").round == 1

    def test_who_has_answered_may_come_back(self) -> None:
        run = training()
        attempt = run.attempt("ada")
        run.update("ada", attempt)
        run.come_back("ada")
        run.ask("ada")
        assert not run.of(r.RoundRepeated)
        run.update("bob", attempt)
        assert [event.counted for event in run.of(r.RoundDone)] == [("ada", "bob")]

    def test_who_was_told_nothing_yet_may_come_back(self) -> None:
        run = Aggregating(patient=True)
        run.join("ada", "bob")
        run.work()
        run.come_back("ada")
        run.trunk_answers()
        assert run.task("ada").duty is Duty.TRAIN
        assert not run.of(r.RoundRepeated)

    def test_a_member_that_cannot_go_on_says_so(self) -> None:
        run = training()
        attempt = run.attempt("ada")
        run.ask("ada", failed=attempt)
        assert [event.attempt for event in run.of(r.RoundRepeated)] == [0]
        assert run.attempt("ada") != attempt
        run.ask("ada", failed=attempt)  # an old failure is no news
        assert len(run.of(r.RoundRepeated)) == 1

    def test_a_trunk_that_is_lost_takes_the_attempt_with_it(self) -> None:
        run = training()
        first = run.attempt("ada")
        run.update("ada", first)
        run.do(run.core.trunk_lost(run.now))
        second = run.attempt("ada")
        assert run.fate("ada", second) is Fate.COUNTED
        assert run.fate("bob", second) is Fate.COUNTED
        counted = [(event.attempt, event.member) for event in run.of(r.UpdateCounted)]
        assert counted == [(0, "ada"), (1, "ada"), (1, "bob")]

    def test_a_trunk_that_is_lost_before_it_began_changes_nothing(self) -> None:
        run = Aggregating(patient=True)
        run.join("ada", "bob")
        run.work()
        run.do(run.core.trunk_lost(run.now))
        assert not run.of(r.RoundRepeated)

    def test_a_trunk_that_cannot_end_the_round_makes_its_mean_void(self) -> None:
        run = training()
        attempt = run.attempt("ada")
        before = run.shared.vector
        run.patient = True
        for member in ("ada", "bob"):
            run.update(member, attempt)
        while run.work():
            pass
        assert isinstance(run.trunk, EndRound)
        run.do(run.core.trunk_failed(attempt, "StepFailed", run.now))
        assert run.shared.vector == before
        assert run.states == [0]
        assert isinstance(run.trunk, BeginRound)
        run.do(run.core.trunk_ended(attempt, run.now))  # the answer to an attempt that is over
        assert run.states == [0]
        assert not run.of(r.RoundDone)

    def test_after_the_last_attempt_all_are_told_to_give_up(self) -> None:
        run = training(max_attempts=2)
        for _ in range(2):
            run.do(run.core.trunk_lost(run.now))
        assert run.core.phase is Phase.FAILED
        assert run.task("ada").duty is Duty.GIVE_UP
        assert run.of(r.RunGivenUp) == [r.RunGivenUp(0, 1, "the trunk was lost")]

    def test_a_run_that_is_given_up_while_its_first_state_is_written_is_not_finished(self) -> None:
        run = Aggregating(plan(rounds=1, min_clients=1, min_updates=1, max_attempts=1))
        run.patient = True
        run.do(run.core.begin(run.shared.vector, run.shared.now.attempt))
        run.join("ada")
        run.wait(run.plan.training_s + 1)
        assert run.of(r.RunGivenUp)
        while run.work():
            pass
        assert not run.of(r.RunFinished)


class TestPoison:
    def test_a_huge_update_is_clipped_and_reported(self) -> None:
        run = training()
        attempt = run.attempt("ada")
        poison = np.full(LAYOUT.elements, 1e20, np.float32)
        assert run.fate("ada", attempt, vector=poison) is Fate.COUNTED
        zero = np.zeros(LAYOUT.elements, np.float32)
        assert run.fate("bob", attempt, vector=zero) is Fate.COUNTED
        ada, bob = run.of(r.UpdateCounted)
        assert ada.clipped
        assert ada.norm == pytest.approx(1e20 * LAYOUT.elements**0.5)
        assert not bob.clipped
        moved = np.frombuffer(run.shared.vector, "<f4") - LAYOUT.flatten(adapters(0))
        share = weight_of("ada") / (weight_of("ada") + weight_of("bob"))
        assert np.linalg.norm(moved) == pytest.approx(MAX_NORM * share, rel=1e-4)

    @pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_is_refused_and_the_others_go_on(self, wrong: float) -> None:
        run = Aggregating(plan(min_clients=3))
        run.join("ada", "bob", "cyd")
        attempt = run.attempt("cyd")
        poison = update_vector("cyd", attempt)
        poison[7] = wrong
        assert isinstance(refused(run.update("cyd", attempt, poison)), UpdateRefused)
        assert [event.member for event in run.of(r.UpdateTurnedAway)] == ["cyd"]
        run.update("ada", attempt)
        run.update("bob", attempt)
        assert [event.counted for event in run.of(r.RoundDone)] == [("ada", "bob")]
        assert np.isfinite(np.frombuffer(run.shared.vector, "<f4")).all()

    @pytest.mark.parametrize("elements", [0, 1, LAYOUT.elements - 1, LAYOUT.elements + 1])
    def test_an_update_of_another_size_is_refused_unread(self, elements: int) -> None:
        run = training()
        attempt = run.attempt("ada")
        run.patient = True
        reply = run.update("ada", attempt, np.zeros(elements, np.float32))
        assert isinstance(refused(reply), UpdateRefused)
        assert not run.pending

    def test_an_update_without_weight_is_refused(self) -> None:
        run = training()
        attempt = run.attempt("ada")
        payload = [update_vector("ada", attempt).tobytes()]
        reply = run.say(run.session("ada"), Kind.UPDATE, Update(attempt, 0, 1.0), payload)
        assert isinstance(refused(reply), UpdateRefused)
