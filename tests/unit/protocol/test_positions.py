"""The one rule of progress, from both sides: the trunk's table and the client's log."""

from __future__ import annotations

import pytest

from fedsea_mq.errors import LimitExceeded, PositionConflict, PositionGap
from fedsea_mq.protocol.messages import Extend
from fedsea_mq.protocol.positions import SentLog, TrunkPositions, Verdict

STATES, OTHER = [b"states"], [b"others"]
REPLY = [b"envelope", b"body", b"outputs"]


def extend(cached: int, count: int, returned: int = 0, *, rewinds: bool = False) -> Extend:
    return Extend(cached=cached, count=count, returned=returned, rewinds=rewinds)


@pytest.fixture
def positions() -> TrunkPositions:
    """A session with 4 of 10 positions cached, by the frame `extend(0, 4)` of `STATES`."""
    held = TrunkPositions(max_positions=10, max_frame_positions=6)
    assert held.receive(extend(0, 4), STATES, 1) is Verdict.APPLY
    held.applied(REPLY)
    return held


class TestTrunkPositions:
    def test_given_a_frame_that_starts_at_cached_then_it_is_applied(
        self, positions: TrunkPositions
    ) -> None:
        assert positions.receive(extend(4, 2), STATES, 1) is Verdict.APPLY
        assert positions.cached == 4
        positions.applied(REPLY)
        assert positions.cached == 6
        assert not positions.in_flight

    def test_given_the_frame_in_flight_again_then_nothing_is_computed_twice(
        self, positions: TrunkPositions
    ) -> None:
        positions.receive(extend(4, 2), STATES, 1)
        assert positions.receive(extend(4, 2), STATES, 1) is Verdict.IN_FLIGHT
        assert positions.in_flight

    @pytest.mark.parametrize(
        ("body", "payload"),
        [(extend(4, 2), OTHER), (extend(4, 1), STATES), (extend(6, 1), STATES)],
    )
    def test_given_another_frame_while_one_is_in_flight_then_it_conflicts(
        self, positions: TrunkPositions, body: Extend, payload: list[bytes]
    ) -> None:
        positions.receive(extend(4, 2), STATES, 1)
        with pytest.raises(PositionConflict, match="in flight"):
            positions.receive(body, payload, 1)
        positions.applied(REPLY)
        assert positions.cached == 6

    def test_given_the_frame_applied_last_again_then_its_reply_is_replayed(
        self, positions: TrunkPositions
    ) -> None:
        for _ in range(3):
            assert positions.receive(extend(0, 4), STATES, 1) is Verdict.REPLAY
            assert positions.reply == REPLY
            assert positions.cached == 4

    @pytest.mark.parametrize(
        ("body", "payload"),
        [
            (extend(0, 4), OTHER),
            (extend(0, 4), [b"stat", b"es", b"!"]),
            (extend(0, 3), STATES),
            (extend(1, 3), STATES),
            (extend(0, 5), STATES),
            (extend(0, 4, returned=1), STATES),
        ],
    )
    def test_given_other_content_for_cached_positions_then_it_conflicts(
        self, positions: TrunkPositions, body: Extend, payload: list[bytes]
    ) -> None:
        with pytest.raises(PositionConflict, match="cached are 4"):
            positions.receive(body, payload, 1)
        assert positions.cached == 4
        assert not positions.in_flight

    def test_given_a_frame_of_before_the_last_one_then_it_conflicts(
        self, positions: TrunkPositions
    ) -> None:
        positions.receive(extend(4, 1), OTHER, 1)
        positions.applied(REPLY)
        with pytest.raises(PositionConflict):
            positions.receive(extend(0, 4), STATES, 1)

    def test_given_a_frame_beyond_cached_then_the_gap_is_named(
        self, positions: TrunkPositions
    ) -> None:
        with pytest.raises(PositionGap, match="position 5, cached are 4"):
            positions.receive(extend(5, 1), STATES, 1)

    def test_given_a_step_that_failed_then_the_same_frame_may_come_again(
        self, positions: TrunkPositions
    ) -> None:
        positions.receive(extend(4, 2), STATES, 1)
        positions.failed()
        assert positions.cached == 4
        assert positions.receive(extend(4, 2), STATES, 1) is Verdict.APPLY

    @pytest.mark.parametrize("body", [extend(4, 7), extend(8, 3), extend(4, 2, returned=3)])
    def test_given_more_than_was_agreed_then_the_limit_is_named(
        self, positions: TrunkPositions, body: Extend
    ) -> None:
        with pytest.raises(LimitExceeded):
            positions.receive(body, STATES, 1)
        assert not positions.in_flight

    def test_a_session_can_be_filled_to_its_last_position(self, positions: TrunkPositions) -> None:
        assert positions.receive(extend(4, 6, returned=6), STATES, 1) is Verdict.APPLY
        positions.applied(REPLY)
        with pytest.raises(LimitExceeded):
            positions.receive(extend(10, 1), STATES, 1)

    def test_given_a_frame_that_rewinds_then_other_states_take_the_place(
        self, positions: TrunkPositions
    ) -> None:
        assert positions.receive(extend(2, 1, rewinds=True), OTHER, 2) is Verdict.APPLY
        assert (positions.cached, positions.reply) == (2, [])
        positions.applied(REPLY)
        assert positions.cached == 3
        with pytest.raises(PositionConflict):
            positions.receive(extend(0, 4), STATES, 1)

    def test_given_a_frame_that_rewinds_again_then_its_reply_is_replayed(
        self, positions: TrunkPositions
    ) -> None:
        positions.receive(extend(2, 1, rewinds=True), OTHER, 2)
        positions.applied(REPLY)
        assert positions.receive(extend(2, 1, rewinds=True), OTHER, 2) is Verdict.REPLAY
        assert positions.cached == 3

    def test_given_nothing_to_forget_then_a_frame_that_rewinds_is_like_any_other(
        self, positions: TrunkPositions
    ) -> None:
        assert positions.receive(extend(4, 1, rewinds=True), OTHER, 2) is Verdict.APPLY
        with pytest.raises(PositionGap):
            TrunkPositions(10, 6).receive(extend(1, 1, rewinds=True), OTHER, 1)

    def test_given_a_late_copy_then_it_is_not_computed_even_where_it_would_fit(
        self, positions: TrunkPositions
    ) -> None:
        positions.receive(extend(4, 1), OTHER, 2)
        positions.applied(REPLY)
        positions.receive(extend(3, 1, rewinds=True), OTHER, 3)
        positions.applied(REPLY)
        assert positions.cached == 4
        for late in (extend(4, 1), extend(2, 1, rewinds=True)):
            with pytest.raises(PositionConflict, match="newer"):
                positions.receive(late, OTHER, 2)
        assert positions.cached == 4

    def test_given_a_step_that_failed_after_rewinding_then_it_may_come_again(
        self, positions: TrunkPositions
    ) -> None:
        positions.receive(extend(2, 1, rewinds=True), OTHER, 2)
        positions.failed()
        assert positions.receive(extend(2, 1, rewinds=True), OTHER, 2) is Verdict.APPLY


def fresh(mark: bytes, count: int) -> list[bytes]:
    """Payload of `count` positions, 2 and 1 bytes a position, as the log below expects."""
    return [mark * 2 * count, mark * count]


@pytest.fixture
def log() -> SentLog:
    """Tokens 10, 11, 12 sent with the bytes `a`."""
    log = SentLog((2, 1))
    assert log.record(0, [10, 11, 12], fresh(b"a", 3)) == fresh(b"a", 3)
    return log


class TestSentLog:
    def test_given_the_same_tokens_again_then_the_first_bytes_are_sent(self, log: SentLog) -> None:
        assert log.record(0, [10, 11, 12], fresh(b"b", 3)) == fresh(b"a", 3)
        assert log.record(1, [11], fresh(b"c", 1)) == fresh(b"a", 1)
        assert log.tokens == [10, 11, 12]

    def test_given_a_changed_token_then_it_and_all_after_it_get_new_bytes(
        self, log: SentLog
    ) -> None:
        assert log.record(0, [10, 99, 12], fresh(b"b", 3)) == [b"aabbbb", b"abb"]
        assert log.tokens == [10, 99, 12]
        assert log.payload(0, 3) == [b"aabbbb", b"abb"]

    def test_given_a_changed_token_then_what_was_logged_behind_it_is_forgotten(
        self, log: SentLog
    ) -> None:
        log.record(0, [99], fresh(b"b", 1))
        assert log.tokens == [99]
        assert log.known(1, [11, 12]) == 0

    def test_given_more_tokens_then_the_known_part_keeps_its_bytes(self, log: SentLog) -> None:
        assert log.record(1, [11, 12, 13], fresh(b"b", 3)) == [b"aaaabb", b"aab"]
        assert log.tokens == [10, 11, 12, 13]

    def test_given_a_known_prefix_then_what_lies_behind_it_stays(self, log: SentLog) -> None:
        log.record(0, [10, 11], fresh(b"b", 2))
        assert log.tokens == [10, 11, 12]

    @pytest.mark.parametrize(
        ("start", "tokens", "known"),
        [(0, [10, 11], 2), (0, [10, 99, 12], 1), (1, [11, 12, 13], 2), (3, [13], 0), (0, [], 0)],
    )
    def test_known_counts_the_tokens_already_sent_at_their_place(
        self, log: SentLog, start: int, tokens: list[int], known: int
    ) -> None:
        assert log.known(start, tokens) == known
