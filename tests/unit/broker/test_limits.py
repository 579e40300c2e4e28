"""What one client may have and send, alone and in the broker."""

from __future__ import annotations

import pytest

from broker.core import BrokerCore
from broker.limits import NO_LIMITS, Held, Limits, Meters, check_room
from broker.messages import Side
from broker.state import BrokerTerms
from fedsea_mq.errors import Busy, LimitExceeded, SessionLost
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Nothing
from tests.unit.broker.placing import S1, S2, S3, TERMS, Placing, offer, read, refused

A, ANNA, BERT = b"node-a", b"anna", b"bert"


def placing(limits: Limits, free: int = 100) -> Placing:
    terms = BrokerTerms(TERMS.heartbeat_ms, TERMS.timeout_ms, limits)
    placing = Placing(BrokerCore(terms, started_at=0.0))
    placing.register(A, offer("a", free=free))
    return placing


class TestRoom:
    def test_without_limits_anything_goes(self) -> None:
        check_room(NO_LIMITS, Held(1 << 20, 1 << 30), 1 << 30)

    def test_sessions_and_positions_are_counted_each(self) -> None:
        limits = Limits(sessions=2, positions=100)
        check_room(limits, Held(1, 60), 40)
        with pytest.raises(Busy):
            check_room(limits, Held(2, 2), 1)
        with pytest.raises(Busy):
            check_room(limits, Held(1, 61), 40)

    def test_what_could_never_be_held_is_no_matter_of_waiting(self) -> None:
        with pytest.raises(LimitExceeded):
            check_room(Limits(positions=100), Held(), 101)


class TestMeters:
    def test_two_seconds_worth_goes_at_once_then_the_rate(self) -> None:
        meters = Meters(Limits(frames_per_s=10))
        for _ in range(21):
            meters.take(ANNA, 1, 5.0)
        with pytest.raises(Busy) as told:
            meters.take(ANNA, 1, 5.0)
        assert told.value.retry_after_s == pytest.approx(0.1)
        meters.take(BERT, 1, 5.0)
        meters.take(ANNA, 1, 5.1)
        with pytest.raises(Busy):
            meters.take(ANNA, 1, 5.1)

    def test_bytes_and_frames_are_metered_each(self) -> None:
        meters = Meters(Limits(frames_per_s=1000, bytes_per_s=100))
        meters.take(ANNA, 500, 0.0)  # more than is due: what follows waits for it
        with pytest.raises(Busy) as told:
            meters.take(ANNA, 1, 1.0)
        assert told.value.retry_after_s == pytest.approx(2.0)
        meters.take(ANNA, 1, 3.0)

    def test_nothing_is_kept_of_who_is_idle(self) -> None:
        meters = Meters(Limits(frames_per_s=10))
        meters.take(ANNA, 1, 0.0)
        meters.take(BERT, 1, 0.09)
        meters.forget_idle(0.15)
        assert list(meters._full_at) == [BERT]
        meters.forget_idle(0.2)
        assert not meters._full_at


class TestInTheBroker:
    def test_a_client_with_all_its_sessions_is_told_busy_and_others_are_not(self) -> None:
        broker = placing(Limits(sessions=1))
        broker.opened(ANNA, S1)
        told = refused(broker.open(ANNA, S2), Busy)
        assert isinstance(told, Busy)
        assert told.retry_after_s > 0
        broker.opened(BERT, S3)
        broker.close(ANNA, S1)
        broker.opened(ANNA, S2)

    def test_positions_of_lost_sessions_are_there_again(self) -> None:
        broker = placing(Limits(positions=20))
        broker.opened(ANNA, S1, positions=20)
        refused(broker.open(ANNA, S2, positions=1), Busy)
        refused(broker.open(ANNA, S2, positions=21), LimitExceeded)
        broker.now += 6.0
        (told,) = broker.tick()
        refused(told, SessionLost)
        broker.register(A, offer("a"))
        broker.opened(ANNA, S2, positions=20)

    def test_a_session_that_waited_is_refused_if_its_client_has_enough_by_then(self) -> None:
        """And the room that was set aside for it is the next one's."""
        broker = placing(Limits(sessions=1), free=10)
        broker.opened(BERT, S3, positions=10)
        for session in (S1, S2, S1, S2):  # the second time, they are held in line
            broker.client_says(ANNA, broker.opening(session, positions=5))
        _, taken, not_taken = broker.close(BERT, S3)
        assert (taken.side, read(taken).envelope.session) == (Side.NODES, S1)
        assert (not_taken.side, read(not_taken).envelope.session) == (Side.CLIENTS, S2)
        refused(not_taken, Busy)
        broker.opened(BERT, S3, positions=5)

    def test_who_sends_too_fast_is_told_when_to_go_on_and_may_always_close(self) -> None:
        broker = placing(Limits(frames_per_s=1))
        broker.opened(ANNA, S1)
        broker.extend(ANNA, S1)
        broker.extend(ANNA, S1)
        told = refused(broker.extend(ANNA, S1), Busy)
        assert isinstance(told, Busy)
        assert told.retry_after_s == pytest.approx(1.0)
        broker.opened(BERT, S2)
        broker.now += 1.0
        assert broker.extend(ANNA, S1).side is Side.NODES
        assert broker.close(ANNA, S1)[0].side is Side.NODES

    def test_a_close_that_ends_nothing_or_brings_more_is_metered_as_all_else(self) -> None:
        broker = placing(Limits(bytes_per_s=1000))
        broker.opened(ANNA, S1)
        for session in (S1, S2):
            large = Frame.build(Kind.CLOSE, Nothing(), session=session, payload=[bytes(5000)])
            broker.client_says(ANNA, large)
            (told,) = broker.client_says(ANNA, large)
            refused(told, Busy)
            broker.now += 10.0
            broker.heartbeat(A)
