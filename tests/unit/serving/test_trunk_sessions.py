"""The trunk's session rules: admission, progress, faults, leases. Frames and times in, actions out.

Positions and their verdicts have tests of their own; here is what the trunk makes of them.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedsea_mq.errors import (
    AdapterMismatch,
    AdapterUnknown,
    Busy,
    DeadlineExceeded,
    FedSeaError,
    FingerprintMismatch,
    LimitExceeded,
    MalformedFrame,
    PositionConflict,
    PositionGap,
    SessionUnknown,
    StepFailed,
)
from fedsea_mq.protocol.adapter_ref import AdapterRef
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Accept, Extend, Nothing, Result
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.serving.scheduler import Owner, Urgency
from fedsea_mq.serving.trunk_sessions import Compute, Peaks, Release, Reply, TrunkSessions
from tests.unit.serving.trunk import ANNA, BERT, CARL, TERMS, Trunk, states


@pytest.fixture
def trunk() -> Trunk:
    return Trunk()


def refused(frame: Frame, error: type[FedSeaError]) -> FedSeaError:
    told = frame.refusal()
    assert type(told) is error
    return told


class TestOpening:
    def test_given_room_then_the_session_is_accepted_and_its_kv_reserved(
        self, trunk: Trunk
    ) -> None:
        reply = trunk.open(ANNA, 60)
        assert reply.envelope.kind is Kind.ACCEPT
        assert reply.body(Accept) == Accept(node="trunk-1", max_frame_positions=8, lease_ms=10_000)
        assert trunk.sessions.ids == [ANNA]
        assert trunk.sessions.kv_free == 40

    def test_peaks_remember_sessions_that_are_gone_when_they_are_asked_for(
        self, trunk: Trunk
    ) -> None:
        trunk.open(ANNA, 60)
        trunk.open(BERT, 30)
        trunk.close(ANNA)
        assert trunk.sessions.take_peaks() == Peaks(sessions=2, kv_reserved=90)
        trunk.close(BERT)
        trunk.open(CARL, 10)
        assert trunk.sessions.take_peaks() == Peaks(sessions=1, kv_reserved=30)
        trunk.close(CARL)
        assert trunk.sessions.take_peaks() == Peaks(sessions=1, kv_reserved=10)
        assert trunk.sessions.take_peaks() == Peaks()

    def test_given_the_same_open_again_then_it_is_accepted_and_reserves_nothing_more(
        self, trunk: Trunk
    ) -> None:
        trunk.open(ANNA, 60)
        assert trunk.open(ANNA, 60).envelope.kind is Kind.ACCEPT
        assert len(trunk.sessions) == 1
        assert trunk.sessions.kv_free == 40

    @pytest.mark.parametrize(
        "other", [{"positions": 59}, {"dtype": WireDtype.FP32}, {"fingerprint": "cd" * 32}]
    )
    def test_given_an_open_session_on_other_terms_then_it_is_refused_and_stays(
        self, trunk: Trunk, other: dict[str, object]
    ) -> None:
        trunk.open(ANNA, 60)
        refused(trunk.open(ANNA, **{"positions": 60, **other}), MalformedFrame)
        assert trunk.sessions.kv_free == 40
        assert trunk.step(ANNA, 0, 1).envelope.kind is Kind.RESULT

    def test_given_another_model_then_both_fingerprints_are_named(self, trunk: Trunk) -> None:
        told = refused(trunk.open(ANNA, fingerprint="cd" * 32), FingerprintMismatch)
        assert "cdcdcdcdcdcd" in str(told)
        assert "abababababab" in str(told)
        assert len(trunk.sessions) == 0

    @pytest.mark.parametrize("positions", [0, 61, 1 << 20])
    def test_given_more_than_a_session_may_ever_hold_then_the_limit_is_named(
        self, trunk: Trunk, positions: int
    ) -> None:
        assert "1 to 60" in str(refused(trunk.open(ANNA, positions), LimitExceeded))

    def test_given_no_free_kv_then_busy_says_when_to_come_back(self, trunk: Trunk) -> None:
        trunk.open(ANNA, 60)
        told = refused(trunk.open(BERT, 41), Busy)
        assert isinstance(told, Busy)
        assert told.retry_after_s == TERMS.retry_after_s
        assert trunk.open(CARL, 40).envelope.kind is Kind.ACCEPT
        assert trunk.sessions.kv_free == 0

    def test_given_all_sessions_taken_then_busy_until_one_closes(self, trunk: Trunk) -> None:
        for session in (ANNA, BERT, CARL):
            trunk.open(session, 1)
        refused(trunk.open(b"d" * 16, 1), Busy)
        trunk.close(ANNA)
        assert trunk.open(b"d" * 16, 1).envelope.kind is Kind.ACCEPT

    def test_given_a_draining_node_then_new_sessions_are_turned_away_and_old_ones_go_on(
        self, trunk: Trunk
    ) -> None:
        trunk.open(ANNA)
        trunk.sessions.draining = True
        refused(trunk.open(BERT), Busy)
        assert trunk.open(ANNA).envelope.kind is Kind.ACCEPT
        assert trunk.step(ANNA, 0, 3).envelope.kind is Kind.RESULT
        assert trunk.close(ANNA) == [Release(ANNA)]


class TestProgress:
    def test_given_a_prompt_in_chunks_then_each_result_says_how_far_it_got(
        self, trunk: Trunk
    ) -> None:
        trunk.open(ANNA)
        for cached, count in [(0, 8), (8, 5), (13, 1)]:
            reply = trunk.step(ANNA, cached, count, mark=cached)
            assert reply.envelope.seq == trunk.seq
            assert reply.body(Result) == Result(cached=cached + count, returned=1)
            assert reply.payload == states(1, cached)

    def test_given_a_repeat_while_computing_then_one_reply_answers_both(self, trunk: Trunk) -> None:
        trunk.open(ANNA)
        work = trunk.begin(ANNA, 0, 4)
        assert trunk.extend(ANNA, 0, 4) == []
        assert len(trunk.sessions.computed(work, states(1))) == 1

    def test_given_a_repeat_after_the_reply_then_it_is_replayed_under_the_new_number(
        self, trunk: Trunk
    ) -> None:
        trunk.open(ANNA)
        first = trunk.step(ANNA, 0, 4, mark=7)
        again = trunk.one(trunk.extend(ANNA, 0, 4, mark=7))
        assert again.envelope.seq == first.envelope.seq + 1 == trunk.seq
        assert again.packed_body == first.packed_body
        assert again.payload == first.payload

    def test_given_other_states_for_cached_positions_then_it_conflicts(self, trunk: Trunk) -> None:
        trunk.open(ANNA)
        trunk.step(ANNA, 0, 4, mark=1)
        refused(trunk.one(trunk.extend(ANNA, 0, 4, mark=2)), PositionConflict)

    def test_given_a_frame_that_overtakes_the_one_computing_then_it_conflicts(
        self, trunk: Trunk
    ) -> None:
        trunk.open(ANNA)
        work = trunk.begin(ANNA, 0, 4)
        refused(trunk.one(trunk.extend(ANNA, 4, 1)), PositionConflict)
        refused(trunk.one(trunk.extend(ANNA, 0, 1, rewinds=True)), PositionConflict)
        assert trunk.one(trunk.sessions.computed(work, states(1))).body(Result).cached == 4

    def test_given_a_gap_then_it_is_named(self, trunk: Trunk) -> None:
        trunk.open(ANNA)
        told = refused(trunk.one(trunk.extend(ANNA, 3, 1)), PositionGap)
        assert "position 3, cached are 0" in str(told)

    def test_given_a_frame_over_the_agreed_size_then_the_limit_is_named(self, trunk: Trunk) -> None:
        trunk.open(ANNA, 10)
        refused(trunk.one(trunk.extend(ANNA, 0, 9)), LimitExceeded)
        trunk.step(ANNA, 0, 8)
        refused(trunk.one(trunk.extend(ANNA, 8, 3)), LimitExceeded)

    @pytest.mark.parametrize("payload", [[], states(3), [*states(4), b""], [b"short"]])
    def test_given_a_payload_of_another_size_then_it_is_malformed_and_never_computed(
        self, trunk: Trunk, payload: list[bytes]
    ) -> None:
        trunk.open(ANNA)
        body = Extend(cached=0, count=4, returned=1)
        refused(trunk.one(trunk.ask(Kind.EXTEND, body, ANNA, payload)), MalformedFrame)
        assert trunk.step(ANNA, 0, 4).body(Result).cached == 4

    def test_given_a_frame_that_rewinds_then_the_session_goes_on_from_there(
        self, trunk: Trunk
    ) -> None:
        trunk.open(ANNA)
        trunk.step(ANNA, 0, 6)
        (work,) = trunk.extend(ANNA, 2, 1, mark=9, rewinds=True)
        assert isinstance(work, Compute)
        assert trunk.one(trunk.sessions.computed(work, states(1))).body(Result).cached == 3
        refused(trunk.one(trunk.extend(ANNA, 4, 1, rewinds=True)), PositionGap)

    def test_given_a_step_that_failed_then_the_client_is_told_and_may_send_it_again(
        self, trunk: Trunk
    ) -> None:
        trunk.open(ANNA)
        work = trunk.begin(ANNA, 0, 4)
        reply = trunk.one(trunk.sessions.failed(work, StepFailed("compute failed: MemoryError")))
        assert reply.envelope.seq == work.envelope.seq
        refused(reply, StepFailed)
        assert trunk.step(ANNA, 0, 4).body(Result).cached == 4


class TestSessionsStayApart:
    def test_one_sessions_faults_leave_another_alone(self, trunk: Trunk) -> None:
        trunk.open(ANNA)
        trunk.open(BERT)
        trunk.step(ANNA, 0, 4)
        work = trunk.begin(BERT, 0, 2)
        trunk.sessions.failed(work, StepFailed("compute failed"))
        trunk.close(BERT)
        assert trunk.step(ANNA, 4, 1).body(Result).cached == 5

    @pytest.mark.parametrize("kind", [Kind.EXTEND, Kind.RENEW])
    def test_given_a_session_that_is_not_held_then_it_is_unknown(
        self, trunk: Trunk, kind: Kind
    ) -> None:
        trunk.open(ANNA)
        body = Extend(cached=0, count=1, returned=1) if kind is Kind.EXTEND else Nothing()
        actions = trunk.ask(kind, body, BERT, states(1))
        refused(trunk.one(actions), SessionUnknown)

    @pytest.mark.parametrize(
        "kind", sorted(set(Kind) - {Kind.OPEN, Kind.EXTEND, Kind.RENEW, Kind.CLOSE})
    )
    def test_given_a_frame_that_no_client_may_send_then_it_is_malformed(
        self, trunk: Trunk, kind: Kind
    ) -> None:
        told = refused(trunk.one(trunk.ask(kind, Nothing(), ANNA)), MalformedFrame)
        assert kind.name in str(told)


class TestTheEnd:
    def test_closing_gives_the_kv_back_and_is_harmless_when_repeated(self, trunk: Trunk) -> None:
        trunk.open(ANNA, 60)
        assert trunk.close(ANNA) == [Release(ANNA)]
        assert trunk.sessions.kv_free == 100
        assert trunk.close(ANNA) == []
        assert trunk.sessions.kv_free == 100
        refused(trunk.one(trunk.extend(ANNA, 0, 1)), SessionUnknown)

    def test_given_a_close_while_computing_then_the_outcome_is_dropped(self, trunk: Trunk) -> None:
        trunk.open(ANNA)
        work = trunk.begin(ANNA, 0, 4)
        trunk.close(ANNA)
        assert trunk.sessions.computed(work, states(1)) == []
        assert trunk.sessions.failed(work, DeadlineExceeded("too late")) == []

    def test_given_the_same_id_opened_anew_then_the_old_step_does_not_touch_it(
        self, trunk: Trunk
    ) -> None:
        trunk.open(ANNA)
        old = trunk.begin(ANNA, 0, 4)
        trunk.close(ANNA)
        trunk.open(ANNA)
        new = trunk.begin(ANNA, 0, 2)
        assert trunk.sessions.computed(old, states(1)) == []
        assert trunk.sessions.failed(old, DeadlineExceeded("too late")) == []
        assert trunk.one(trunk.sessions.computed(new, states(1))).body(Result).cached == 2

    def test_given_silence_for_the_lease_then_the_session_ends_and_its_client_is_told(
        self, trunk: Trunk
    ) -> None:
        trunk.open(ANNA, 60)
        assert trunk.sessions.expire(9.99) == []
        release, told = trunk.sessions.expire(10.0)
        assert release == Release(ANNA)
        assert isinstance(told, Reply)
        closing = Frame.read(told.parts)
        assert closing.envelope.kind is Kind.CLOSE
        refused(closing, SessionUnknown)
        assert trunk.sessions.kv_free == 100
        assert trunk.sessions.ids == []

    @pytest.mark.parametrize("how", ["renew", "extend"])
    def test_any_frame_of_its_client_keeps_a_session_alive(self, trunk: Trunk, how: str) -> None:
        trunk.open(ANNA)
        trunk.open(BERT)
        trunk.now = 9.0
        match how:
            case "renew":
                assert trunk.renew(ANNA).envelope.kind is Kind.RENEWED
            case _:
                trunk.step(ANNA, 0, 1)
        assert trunk.sessions.expire(10.0)[0] == Release(BERT)
        assert trunk.sessions.ids == [ANNA]
        assert trunk.sessions.expire(18.99) == []
        assert trunk.sessions.expire(19.0)[0] == Release(ANNA)


def test_work_belongs_to_the_client_that_the_broker_named(trunk: Trunk) -> None:
    trunk.open(ANNA, client=b"conn-1", urgency=0)
    trunk.open(BERT, client=b"conn-2")
    (first,), (second,) = trunk.extend(ANNA, 0, 1), trunk.extend(BERT, 0, 1)
    assert isinstance(first, Compute)
    assert isinstance(second, Compute)
    assert first.owner == Owner(b"conn-1", ANNA, Urgency.INTERACTIVE)
    assert second.owner == Owner(b"conn-2", BERT, Urgency.NORMAL)


def test_an_open_repeated_over_another_connection_is_the_same_session(trunk: Trunk) -> None:
    trunk.open(ANNA, client=b"conn-1")
    assert trunk.open(ANNA, client=b"conn-7").envelope.kind is Kind.ACCEPT
    assert len(trunk.sessions) == 1


def test_a_session_computes_with_the_adapter_that_it_was_opened_with() -> None:
    # Given a trunk that holds one adapter.
    held, other = AdapterRef("formal", "12" * 32), AdapterRef("formal", "34" * 32)
    trunk = Trunk(TrunkSessions(replace(TERMS, adapters=[held])))
    # When sessions ask for it, for none, and for what is not held.
    assert trunk.open(ANNA, adapter=held).envelope.kind is Kind.ACCEPT
    assert trunk.open(BERT).envelope.kind is Kind.ACCEPT
    refused(trunk.open(CARL, adapter=other), AdapterMismatch)
    refused(trunk.open(CARL, adapter=AdapterRef("short", "12" * 32)), AdapterUnknown)
    # Then each computes with its own, and keeps it.
    assert (trunk.begin(ANNA, 0, 1).adapter, trunk.begin(BERT, 0, 1).adapter) == ("formal", None)
    refused(trunk.open(ANNA), MalformedFrame)
    assert trunk.sessions.ids == [ANNA, BERT]
