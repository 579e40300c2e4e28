"""Secure rounds through the aggregator's core: real members, records and vectors as bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from fedsea_mq.errors import AttemptOver, FedSeaError, MalformedFrame, OutOfTurn
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.training_messages import Duty, EndRound, Fate, Secured
from fedsea_mq.training.aggregation import reports as r
from fedsea_mq.training.aggregation.secure_stages import SecureRules
from fedsea_mq.training.secure_aggregation.client import SecureClient
from fedsea_mq.training.secure_aggregation.messages import (
    KeyList,
    Message,
    Roster,
    ShareList,
    Terms,
    UnmaskRequest,
    decode_message,
    encode_message,
)
from tests.unit.training.adapters import adapters
from tests.unit.training.aggregating import (
    LAYOUT,
    MAX_NORM,
    Aggregating,
    plan,
    update_vector,
    weight_of,
)

RULES = SecureRules(LAYOUT, max_abs=MAX_NORM, stage_s=10.0)
EVERYBODY = ("ada", "bob", "cyd", "dan")


def secure_run() -> Aggregating:
    """Four members, all of whose updates are counted: the stages begin."""
    run = Aggregating(plan(min_clients=4, rounds=1), RULES)
    run.join(*EVERYBODY)
    attempt = run.attempt("ada")
    for member in EVERYBODY:
        assert run.fate(member, attempt) is Fate.COUNTED
    return run


@dataclass
class Masking:
    """A member's side of the stages; `told` is what it has heard last."""

    run: Aggregating
    name: str
    said: bytes = b""
    vector: bytes = b""
    told: bytes = b""
    client: SecureClient = field(init=False)

    def __post_init__(self) -> None:
        asked = self.run.ask(self.name)
        assert asked is not None
        task, (terms, roster) = asked
        assert task.duty is Duty.MASK
        self.attempt = task.attempt
        self.roster = decode_message(Roster, roster).members
        assert self.roster[task.number - 1] == self.name
        self.client = SecureClient(decode_message(Terms, terms), LAYOUT, task.number)

    def say(self, message: Message, vector: bytes = b"") -> Frame | None:
        self.said, self.vector = encode_message(message), vector
        return self.again()

    def again(self) -> Frame | None:
        return self.run.secure_says(self.name, self.attempt, self.said, self.vector)

    def hear(self) -> bytes:
        """What is said to the last message, which is sent again to hear it."""
        reply = self.again()
        assert reply is not None
        assert reply.envelope.kind is Kind.SECURED, reply.refusal()
        assert reply.body(Secured).attempt == self.attempt
        return b"".join(reply.payload)

    def keys(self) -> None:
        self.say(self.client.keys)

    def share(self) -> None:
        self.say(self.client.share(decode_message(KeyList, self.hear())))

    def mask(self) -> None:
        self.client.hold(decode_message(ShareList, self.hear()))
        vector = update_vector(self.name, self.attempt)
        message, masked = self.client.mask(LAYOUT.unflatten(vector), weight_of(self.name))
        self.say(message, bytes(masked))

    def reveal(self) -> None:
        self.say(self.client.reveal(decode_message(UnmaskRequest, self.hear())))


STEPS = (Masking.keys, Masking.share, Masking.mask, Masking.reveal)


def check_mean(run: Aggregating, of: tuple[str, ...], attempt: bytes) -> None:
    weights = [weight_of(member) for member in of]
    vectors = np.array([update_vector(member, attempt) for member in of], np.float64)
    expected = LAYOUT.flatten(adapters(0)) + np.average(vectors, axis=0, weights=weights)
    np.testing.assert_allclose(np.frombuffer(run.shared.vector, "<f4"), expected, atol=1e-7)


@pytest.mark.parametrize("stage", range(4), ids=["keys", "shares", "masked", "unmask"])
@pytest.mark.parametrize("how", ["leaves", "falls silent", "comes back"])
def test_a_member_lost_at_any_stage_leaves_the_exact_sum_of_the_others(
    stage: int, how: str
) -> None:
    run = secure_run()
    masking = {member: Masking(run, member) for member in EVERYBODY}
    attempt = masking["ada"].attempt
    for step in STEPS[:stage]:
        for member in masking.values():
            step(member)
    lost = masking.pop("cyd")
    if how == "leaves":
        run.leave("cyd")
    if how == "comes back":
        run.come_back("cyd")
        run.ask("cyd", failed=attempt)  # its secrets are gone
    for step in STEPS[stage:]:
        for member in masking.values():
            step(member)
        if how == "falls silent" and step is STEPS[stage]:
            run.wait(10.0)
    # Whoever is lost after its vector came is in the sum.
    of = EVERYBODY if lost.vector else ("ada", "bob", "dan")
    check_mean(run, of, attempt)
    end = run.told_trunk[-1]
    assert isinstance(end, EndRound)
    assert end.counted == list(of)
    assert [event.counted for event in run.of(r.RoundDone)] == [of]


def test_one_that_comes_back_before_it_said_anything_takes_part() -> None:
    run = secure_run()
    masking = {member: Masking(run, member) for member in EVERYBODY}
    run.leave("cyd")
    run.come_back("cyd")
    masking["cyd"] = Masking(run, "cyd")
    for step in STEPS:
        for member in masking.values():
            step(member)
    check_mean(run, EVERYBODY, masking["ada"].attempt)


def test_whatever_is_said_again_is_answered_again_and_counts_once() -> None:
    run = secure_run()
    masking = {member: Masking(run, member) for member in EVERYBODY}
    for step in STEPS:
        for member in masking.values():
            step(member)
            member.again()
    for member in masking.values():
        assert member.hear() == b""  # there is nothing after the last
    check_mean(run, EVERYBODY, masking["ada"].attempt)


def test_a_vector_that_is_being_added_is_not_answered_with_what_was_said_before() -> None:
    run = secure_run()
    masking = [Masking(run, member) for member in EVERYBODY]
    for step in STEPS[:2]:
        for member in masking:
            step(member)
    run.patient = True
    message, vector = masked(masking[0])
    assert masking[0].say(message, vector) is None
    assert masking[0].again() is None
    assert len(run.pending) == 1
    run.work()
    run.patient = False
    for member in masking[1:]:
        member.mask()
    for member in masking:
        member.reveal()
    check_mean(run, EVERYBODY, masking[0].attempt)


def test_one_that_loses_its_session_alone_says_all_of_it_again_and_takes_part() -> None:
    run = secure_run()
    masking = {member: Masking(run, member) for member in EVERYBODY}
    said = []
    for step in STEPS[:2]:
        for member in masking.values():
            step(member)
        said.append(masking["cyd"].said)
    told = masking["cyd"].hear()
    run.come_back("cyd")
    assert run.task("cyd").duty is Duty.MASK
    for record in said:
        masking["cyd"].said = record
        heard = masking["cyd"].hear()
    assert heard == told
    for step in STEPS[2:]:
        for member in masking.values():
            step(member)
    check_mean(run, EVERYBODY, masking["ada"].attempt)


def test_a_message_that_is_held_too_long_is_to_be_said_again() -> None:
    run = secure_run()
    ada = Masking(run, "ada")
    ada.keys()
    run.wait(1.5)
    held = [f for f in run.replies.values() if f.envelope.kind is Kind.SECURED]
    assert [list(frame.payload) for frame in held] == [[]]


def test_fewer_than_the_threshold_make_the_attempt_void_and_the_held_are_told() -> None:
    run = secure_run()
    masking = [Masking(run, member) for member in EVERYBODY]
    for member in masking[:2]:
        member.keys()
    before = run.shared.vector
    run.wait(1.5)
    for member in masking[:2]:
        member.again()
    run.now = 9.9
    for member in masking[:2]:
        member.again()
    run.wait(0.1)
    assert [event.reason for event in run.of(r.RoundRepeated)] == [
        "2 members at stage KEYS, the threshold is 3"
    ]
    error = refusal(masking[0].again())
    assert isinstance(error, AttemptOver)
    assert run.attempt("ada") != masking[0].attempt
    assert run.shared.vector == before


def test_a_sum_that_is_garbage_makes_the_attempt_void() -> None:
    run = secure_run()
    masking = [Masking(run, member) for member in EVERYBODY]
    for step in STEPS[:2]:
        for member in masking:
            step(member)
    for member in masking[:3]:
        member.mask()
    message, vector = masked(masking[3])
    masking[3].say(message, bytes(len(vector)))
    for member in masking:
        member.reveal()
    assert [event.attempt for event in run.of(r.RoundRepeated)] == [0]
    assert not run.of(r.RoundDone)


def masked(member: Masking) -> tuple[Message, bytes]:
    member.client.hold(decode_message(ShareList, member.hear()))
    vector = LAYOUT.unflatten(update_vector(member.name, member.attempt))
    message, words = member.client.mask(vector, weight_of(member.name))
    return message, bytes(words)


def refusal(frame: Frame | None) -> FedSeaError | None:
    assert frame is not None
    return frame.refusal()


class TestRefusals:
    def test_who_is_not_in_it_or_of_another_attempt(self) -> None:
        run = secure_run()
        ada = Masking(run, "ada")
        run.join("eve")
        record = encode_message(ada.client.keys)
        assert isinstance(refusal(run.secure_says("eve", ada.attempt, record)), AttemptOver)
        assert isinstance(refusal(run.secure_says("ada", bytes(16), record)), AttemptOver)

    def test_a_vector_of_another_length_is_not_added(self) -> None:
        run = secure_run()
        masking = [Masking(run, member) for member in EVERYBODY]
        for step in STEPS[:2]:
            for member in masking:
                step(member)
        run.patient = True
        message, vector = masked(masking[0])
        error = refusal(masking[0].say(message, vector[8:]))
        assert isinstance(error, MalformedFrame)
        assert not run.pending

    def test_other_words_than_before_and_what_is_no_record(self) -> None:
        run = secure_run()
        ada = Masking(run, "ada")
        error = refusal(run.secure_says("ada", ada.attempt, b"\x00nothing"))
        assert isinstance(error, MalformedFrame)
        ada.keys()
        other = SecureClient(ada.client.terms, LAYOUT, ada.client.member)
        assert isinstance(refusal(ada.say(other.keys)), OutOfTurn)
