"""Sessions of a node that two brokers know of."""

from __future__ import annotations

from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Nothing, Open
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.serving.trunk_sessions import BROKER, Action, Peaks, Release, Reply, of_broker
from tests.unit.serving.trunk import ANNA, BERT, FINGERPRINT, Trunk

OTHER = of_broker(1)


def close(session: bytes, number: int = 0) -> Frame:
    return Frame.build(Kind.CLOSE, Nothing(), session=session, seq=number)


def open_by(trunk: Trunk, broker: bytes, session: bytes) -> None:
    asked = Open(FINGERPRINT, 20, WireDtype.FP16)
    trunk.sessions.receive(Frame.build(Kind.OPEN, asked, session=session, seq=1), 0.0, broker)


def renew_by(trunk: Trunk, broker: bytes, session: bytes) -> None:
    trunk.sessions.receive(Frame.build(Kind.RENEW, Nothing(), session=session, seq=9), 0.0, broker)


def told_over(actions: list[Action]) -> list[bytes]:
    """The brokers that are told that a session is over."""
    replies = [one for one in actions if isinstance(one, Reply)]
    assert all(Frame.read(reply.parts).envelope.kind is Kind.CLOSE for reply in replies)
    return [reply.to for reply in replies]


def test_a_broker_that_lost_the_client_does_not_end_what_goes_on_by_another() -> None:
    trunk = Trunk()
    open_by(trunk, BROKER, ANNA)
    renew_by(trunk, OTHER, ANNA)
    assert trunk.sessions.receive(close(ANNA), 0.0, BROKER) == []
    assert trunk.sessions.ids == [ANNA]
    assert Release(ANNA) in trunk.sessions.receive(close(ANNA), 0.0, OTHER)


def test_a_client_ends_its_session_by_whichever_broker() -> None:
    trunk = Trunk()
    open_by(trunk, BROKER, ANNA)
    assert Release(ANNA) in trunk.sessions.receive(close(ANNA, number=7), 0.0, OTHER)
    assert not len(trunk.sessions)


def test_every_broker_that_knows_a_session_is_told_when_it_is_over() -> None:
    """It cannot see it from their number alone: others may have begun by the other broker."""
    trunk = Trunk()
    open_by(trunk, BROKER, ANNA)
    renew_by(trunk, OTHER, ANNA)
    assert told_over(trunk.sessions.receive(close(ANNA, number=7), 0.0, OTHER)) == [BROKER]
    open_by(trunk, BROKER, ANNA)
    trunk.sessions.told_to(OTHER)
    open_by(trunk, BROKER, BERT)
    assert told_over(trunk.sessions.receive(close(ANNA, number=7), 0.0, BROKER)) == [OTHER]
    assert told_over(trunk.sessions.receive(close(BERT, number=7), 0.0, BROKER)) == []


def test_every_broker_that_knows_a_session_is_told_when_its_lease_is_over() -> None:
    trunk = Trunk()
    open_by(trunk, BROKER, ANNA)
    renew_by(trunk, OTHER, ANNA)
    assert sorted(told_over(trunk.sessions.expire(1000.0))) == [BROKER, OTHER]


def test_what_one_broker_was_told_of_peaks_the_other_was_not() -> None:
    trunk = Trunk()
    open_by(trunk, BROKER, ANNA)
    trunk.sessions.receive(close(ANNA, number=7), 0.0, BROKER)
    assert trunk.sessions.take_peaks(BROKER) == Peaks(1, 20)
    assert trunk.sessions.take_peaks(OTHER) == Peaks(1, 20)
    assert trunk.sessions.take_peaks(BROKER) == trunk.sessions.take_peaks(OTHER) == Peaks()
