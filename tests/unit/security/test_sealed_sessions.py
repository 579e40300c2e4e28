"""Sealed sessions under a relay that changes, swaps, cuts, replays and forges: typed refusals.

Whatever it does, the session stands where it stood, and the true frame still does what it says.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from fedsea_mq.errors import (
    Busy,
    FingerprintMismatch,
    KeyUntrusted,
    LimitExceeded,
    MalformedFrame,
    MemberReplaced,
    PositionConflict,
    PositionGap,
    RemoteError,
    SealBroken,
    SealRequired,
    SessionLost,
    SessionUnknown,
    StepFailed,
)
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.protocol.messages import Accept, Extend, Nothing, Result, encode_body
from tests.unit.security.sealed import OPEN, SealedClient, SealedTrunk, drawn
from tests.unit.serving.trunk import ANNA, BERT, TERMS, states


@pytest.fixture
def trunk() -> SealedTrunk:
    return SealedTrunk()


@pytest.fixture
def client(trunk: SealedTrunk) -> SealedClient:
    return SealedClient.of(trunk.key)


def told(parts: Parts) -> RemoteError:
    """The refusal of a reply in clear."""
    refusal = Frame.read(parts).refusal()
    assert isinstance(refusal, RemoteError)
    return refusal


def ask(client: SealedClient, trunk: SealedTrunk, parts: Parts) -> Frame:
    (reply,) = trunk.receive(parts)
    return client.answer(reply)


class TestAnHonestRelay:
    def test_given_an_open_session_then_requests_and_answers_are_sealed(
        self, client: SealedClient, trunk: SealedTrunk
    ) -> None:
        assert client.open(trunk) == Accept("trunk-1", 8, 10_000)
        extend = client.extend(0, 4, mark=7)
        (reply,) = trunk.receive(extend)
        assert all(b"\x07" * 8 not in part for part in (*extend, *reply))
        answer = client.answer(reply)
        assert answer.body(Result) == Result(cached=4, returned=1)
        assert list(answer.payload) == states(1, mark=7)
        assert ask(client, trunk, client.renew()).envelope.kind is Kind.RENEWED

    def test_given_a_refusal_of_an_open_session_then_it_is_sealed_too(
        self, client: SealedClient, trunk: SealedTrunk
    ) -> None:
        client.open(trunk)
        (reply,) = trunk.receive(client.extend(5, 1))
        with pytest.raises(MalformedFrame):
            Frame.read(reply).refusal()
        assert isinstance(client.answer(reply).refusal(), PositionGap)

    def test_given_a_request_again_then_the_stored_reply_comes_under_a_new_counter(
        self, client: SealedClient, trunk: SealedTrunk
    ) -> None:
        client.open(trunk)
        extend = client.extend(0, 4, mark=7)
        (first,), (second,) = trunk.receive(extend), trunk.receive(extend)
        assert first[1] != second[1]
        assert client.answer(first) == client.answer(second)
        assert len(trunk.computed) == 1

    def test_given_open_again_then_it_is_accepted_with_the_same_keys(
        self, client: SealedClient, trunk: SealedTrunk
    ) -> None:
        asked = client.request(Kind.OPEN, OPEN)
        lost, (reply,) = trunk.receive(asked), trunk.receive(asked)
        assert lost
        client.answer(reply)
        assert ask(client, trunk, client.extend(0, 1)).envelope.kind is Kind.RESULT
        assert len(trunk.seals) == len(trunk.sessions) == 1

    def test_given_sessions_that_end_in_any_way_then_no_key_is_kept(
        self, client: SealedClient, trunk: SealedTrunk
    ) -> None:
        client.open(trunk)
        client.open(trunk, BERT, replace(OPEN, max_positions=20))
        trunk.receive(Frame.build(Kind.CLOSE, Nothing(), session=ANNA).parts())
        assert len(trunk.seals) == 1
        trunk.now = TERMS.lease_s
        (gone,) = trunk.expire()
        assert isinstance(client.answer(gone).refusal(), SessionUnknown)
        assert len(trunk.seals) == 0
        client.seals.forget(ANNA)
        client.seals.forget(BERT)
        assert len(client.seals) == 0

    @pytest.mark.parametrize(
        ("asked", "error"),
        [
            ({"fingerprint": "cd" * 32}, FingerprintMismatch),
            ({"max_positions": 61}, LimitExceeded),
            ({"max_positions": 41}, Busy),
        ],
    )
    def test_given_an_opening_that_is_refused_then_no_key_is_kept(
        self,
        client: SealedClient,
        trunk: SealedTrunk,
        asked: dict[str, Any],
        error: type[RemoteError],
    ) -> None:
        client.open(trunk, BERT)
        wrong = replace(OPEN, **{"max_positions": 20, **asked})
        (reply,) = trunk.receive(client.request(Kind.OPEN, wrong))
        assert type(client.answer(reply).refusal()) is error
        assert len(trunk.seals) == 1

    def test_given_a_session_that_is_not_open_then_nothing_is_built_for_it(
        self, client: SealedClient, trunk: SealedTrunk
    ) -> None:
        with pytest.raises(SessionUnknown):
            client.renew()
        client.request(Kind.OPEN, OPEN)
        with pytest.raises(SessionUnknown):
            client.extend(0, 1)
        client.open(trunk)
        client.seals.forget(ANNA)
        with pytest.raises(SessionUnknown):
            client.renew()

    def test_given_a_result_of_a_session_that_is_over_then_it_is_not_sent_in_clear(
        self, client: SealedClient, trunk: SealedTrunk
    ) -> None:
        client.open(trunk)
        late = Frame.build(Kind.RESULT, Result(1, 1), session=ANNA, payload=states(1)).parts()
        assert trunk.seals.seal(late) is not None
        trunk.seals.forget(ANNA)
        assert trunk.seals.seal(late) is None


class TestWhoAgrees:
    def test_given_another_nodes_key_then_the_client_says_so(self, trunk: SealedTrunk) -> None:
        with pytest.raises(KeyUntrusted):
            SealedClient.of(drawn()).open(trunk)

    def test_given_a_client_that_does_not_seal_then_it_is_told_what_it_needs(
        self, trunk: SealedTrunk
    ) -> None:
        (reply,) = trunk.receive(Frame.build(Kind.OPEN, OPEN, session=ANNA, seq=1).parts())
        assert isinstance(told(reply), SealRequired)
        assert len(trunk.seals) == len(trunk.sessions) == 0

    def test_given_a_node_that_does_not_seal_then_the_client_takes_nothing_from_it(
        self, client: SealedClient
    ) -> None:
        client.request(Kind.OPEN, OPEN)
        accept = Frame.build(Kind.ACCEPT, Accept("trunk-1", 8, 10_000), session=ANNA, seq=1)
        with pytest.raises(SealBroken):
            client.answer(accept.parts())

    def test_given_an_open_of_another_client_for_the_session_then_it_gets_nothing(
        self, client: SealedClient, trunk: SealedTrunk
    ) -> None:
        client.open(trunk)
        thief = SealedClient.of(trunk.key)
        (reply,) = trunk.receive(thief.request(Kind.OPEN, OPEN))
        with pytest.raises(SealBroken):
            thief.answer(reply)
        (reply,) = trunk.receive(Frame.build(Kind.RENEW, Nothing(), session=ANNA, seq=9).parts())
        assert isinstance(told(reply), SealBroken)
        assert ask(client, trunk, client.extend(0, 1)).envelope.kind is Kind.RESULT


def flips(parts: Parts) -> Iterator[Parts]:
    """Each byte of each part, with some bit or all of them changed; and cut in any place."""
    for number, part in enumerate(parts):
        for at, byte in enumerate(part):
            for mask in (1, 0x80, 0xFF, 0x0F, 0x0E):
                changed = part[:at] + bytes([byte ^ mask]) + part[at + 1 :]
                yield [*parts[:number], changed, *parts[number + 1 :]]
            yield [*parts[:number], part[:at], *parts[number + 1 :]]
        yield [*parts[:number], *parts[number + 1 :]]


class TestAMeddler:
    def test_given_any_byte_of_a_request_changed_then_nothing_is_computed_and_it_can_come_again(
        self, client: SealedClient, trunk: SealedTrunk
    ) -> None:
        client.open(trunk)
        extend, refused = client.extend(0, 4, mark=7), 0
        for changed in flips(extend):
            if changed[0] == _as_close(extend):
                continue  # ends the session, which anybody on the way can do
            for reply in trunk.receive(changed):
                refused += 1
                assert isinstance(told(reply), SealBroken | SessionUnknown | MalformedFrame)
            assert trunk.cached() == 0
            assert not trunk.computed
        assert refused > len(extend[1]) + len(extend[2])
        assert ask(client, trunk, extend).body(Result) == Result(4, 1)

    def test_given_any_byte_of_an_answer_changed_then_it_is_not_taken_and_can_come_again(
        self, client: SealedClient, trunk: SealedTrunk
    ) -> None:
        client.open(trunk)
        extend = client.extend(0, 4, mark=7)
        (reply,) = trunk.receive(extend)
        for changed in flips(reply):
            try:
                frame = Frame.read(changed)
            except RemoteError:
                continue  # the link refuses it
            if frame.envelope.session == ANNA:
                with pytest.raises(SealBroken):
                    client.seals.open(frame)
        assert ask(client, trunk, extend).body(Result) == Result(4, 1)

    def test_given_any_byte_of_the_opening_changed_then_no_session_begins_and_it_can_come_again(
        self, client: SealedClient, trunk: SealedTrunk
    ) -> None:
        asked = client.request(Kind.OPEN, OPEN)
        for changed in flips(asked):
            for reply in SealedTrunk(trunk.key).receive(changed):
                frame = Frame.read(reply)
                # Whatever has another session or number answers nothing that the client asked.
                asks = (frame.envelope.session, frame.envelope.seq) == (ANNA, client.seq)
                if frame.envelope.kind is Kind.ACCEPT and asks:
                    with pytest.raises(SealBroken):
                        client.seals.open(frame)
        (reply,) = trunk.receive(asked)
        for changed in flips(reply):
            try:
                frame = Frame.read(changed)
            except RemoteError:
                continue
            if frame.envelope.session == ANNA and changed != reply:
                with pytest.raises(SealBroken):
                    client.seals.open(frame)
        assert client.answer(reply).body(Accept).node == "trunk-1"

    def test_given_the_frames_of_two_sessions_swapped_then_neither_moves(
        self, client: SealedClient, trunk: SealedTrunk
    ) -> None:
        small = replace(OPEN, max_positions=40)
        client.open(trunk, ANNA, small)
        client.open(trunk, BERT, small)
        annas, berts = client.extend(0, 2, 1, ANNA), client.extend(0, 2, 2, BERT)
        for envelope, body in ((annas, berts), (berts, annas)):
            (reply,) = trunk.receive([envelope[0], *body[1:]])
            assert isinstance(told(reply), SealBroken)
        assert trunk.cached(ANNA) == trunk.cached(BERT) == 0
        (to_anna,), (to_bert,) = trunk.receive(annas), trunk.receive(berts)
        for envelope, body in ((to_anna, to_bert), (to_bert, to_anna)):
            with pytest.raises(SealBroken):
                client.answer([envelope[0], *body[1:]])
        assert list(client.answer(to_bert).payload) == states(1, mark=2)

    def test_given_old_requests_replayed_then_nothing_is_computed_and_no_lease_renewed(
        self, client: SealedClient, trunk: SealedTrunk
    ) -> None:
        client.open(trunk, ANNA, replace(OPEN, max_positions=40))
        client.open(trunk, BERT, replace(OPEN, max_positions=40))
        frames = [client.extend(at, 1, at) for at in range(4)]
        frames += [client.extend(2, 1, 9, rewinds=True), client.renew()]
        for frame in frames:
            ask(client, trunk, frame)
        computed = len(trunk.computed)
        trunk.now = TERMS.lease_s - 1
        random.Random(3).shuffle(frames)
        for frame in frames:
            (reply,) = trunk.receive(frame)
            refusal = client.answer(reply).refusal()
            assert refusal is None or isinstance(refusal, PositionConflict)
        ask(client, trunk, client.renew(BERT))
        assert (len(trunk.computed), trunk.cached()) == (computed, 3)
        trunk.now = TERMS.lease_s
        (gone,) = trunk.expire()
        assert isinstance(client.answer(gone).refusal(), SessionUnknown)
        assert trunk.sessions.ids == [BERT]

    def test_given_an_answer_replayed_then_it_is_not_taken_again(
        self, client: SealedClient, trunk: SealedTrunk
    ) -> None:
        client.open(trunk)
        (reply,) = trunk.receive(client.extend(0, 1))
        client.answer(reply)
        with pytest.raises(SealBroken):
            client.answer(reply)

    def test_given_frames_of_an_earlier_session_under_the_same_id_then_they_do_not_open(
        self, client: SealedClient, trunk: SealedTrunk
    ) -> None:
        client.open(trunk)
        old = client.extend(0, 1)
        trunk.receive(Frame.build(Kind.CLOSE, Nothing(), session=ANNA).parts())
        client.open(trunk)
        (reply,) = trunk.receive(old)
        assert isinstance(told(reply), SealBroken)
        assert trunk.cached() == 0

    @pytest.mark.parametrize(
        "error",
        [
            SessionLost("gone"),
            SessionUnknown("gone"),
            MemberReplaced("another one"),
            Busy("no room", 0.5),
        ],
    )
    def test_given_what_the_broker_may_say_then_the_client_believes_it(
        self, client: SealedClient, trunk: SealedTrunk, error: RemoteError
    ) -> None:
        client.open(trunk)
        said = Frame.error(error, Envelope(Kind.EXTEND, ANNA, client.seq))
        assert type(client.answer(said.parts()).refusal()) is type(error)

    @pytest.mark.parametrize(
        "error", [PositionConflict("x"), StepFailed("x"), MalformedFrame("x"), KeyUntrusted("x")]
    )
    def test_given_what_only_the_node_can_know_then_in_clear_it_is_not_believed(
        self, client: SealedClient, trunk: SealedTrunk, error: RemoteError
    ) -> None:
        client.open(trunk)
        for frame in (
            Frame.error(error, Envelope(Kind.EXTEND, ANNA, client.seq)),
            Frame.closing(error, ANNA),
            Frame(Envelope(Kind.CLOSE, ANNA), encode_body(Extend(0, 1, 1))),
        ):
            with pytest.raises(SealBroken):
                client.answer(frame.parts())

    def test_given_a_forged_result_in_clear_then_it_is_not_believed(
        self, client: SealedClient, trunk: SealedTrunk
    ) -> None:
        client.open(trunk)
        for kind, body in ((Kind.RESULT, Result(1, 1)), (Kind.RENEWED, Nothing())):
            forged = Frame.build(kind, body, session=ANNA, seq=2, payload=states(1))
            with pytest.raises(SealBroken):
                client.answer(forged.parts())


def _as_close(parts: Parts) -> bytes:
    envelope = Frame.read(parts).envelope
    return Envelope(Kind.CLOSE, envelope.session, envelope.seq).encode()
