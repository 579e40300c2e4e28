"""What a trunk takes past the broker, and where its answers go."""

from __future__ import annotations

import pytest

from fedsea_mq.errors import MalformedFrame, SessionNotYours, SessionUnknown, StepFailed
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Accept, Extend, Nothing, Open
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.serving.scheduler import Owner
from fedsea_mq.serving.trunk_sessions import (
    BROKER,
    DIRECT,
    Action,
    Compute,
    Reply,
    TrunkSessions,
    TrunkTerms,
    of_broker,
)
from tests.unit.serving.trunk import ANNA, BERT, FINGERPRINT, TERMS, Trunk, states

DOOR, OTHER_DOOR = DIRECT + b"\x00anna", DIRECT + b"\x00anna again"


@pytest.fixture
def trunk() -> Trunk:
    opened = Trunk()
    opened.open(ANNA, client=b"conn-1")
    return opened


def extend(cached: int = 0, session: bytes = ANNA, seq: int = 100) -> Frame:
    body = Extend(cached=cached, count=1, returned=1)
    return Frame.build(Kind.EXTEND, body, session=session, seq=seq, payload=states(1))


def only(actions: list[Action]) -> Reply:
    (reply,) = actions
    assert isinstance(reply, Reply)
    return reply


def begun(actions: list[Action]) -> Compute:
    (work,) = actions
    assert isinstance(work, Compute)
    return work


def test_a_node_that_listens_offers_where_when_it_accepts() -> None:
    fields = {name: getattr(TERMS, name) for name in TrunkTerms.__slots__}
    terms = TrunkTerms(**fields | {"direct": "tcp://10.0.0.7:7710"})
    accepted = Trunk(TrunkSessions(terms)).open(ANNA).body(Accept)
    assert (accepted.direct, accepted.direct_key) == ("tcp://10.0.0.7:7710", None)
    keyed = TrunkTerms(**fields | {"direct": "tcp://10.0.0.7:7710", "direct_key": bytes(32)})
    assert Trunk(TrunkSessions(keyed)).open(ANNA).body(Accept).direct_key == bytes(32)


def test_past_the_broker_a_session_is_that_of_the_key_that_it_was_opened_with(
    trunk: Trunk,
) -> None:
    renew = Frame.build(Kind.RENEW, Nothing(), session=ANNA, seq=100)
    for frame in (extend(0), renew):
        refused = only(trunk.sessions.receive(frame, 0.0, OTHER_DOOR, b"conn-2"))
        assert refused.to == OTHER_DOOR
        assert type(Frame.read(refused.parts).refusal()) is SessionNotYours
    assert trunk.sessions.direct == 0
    begun(trunk.sessions.receive(extend(0), 0.0, DOOR, b"conn-1"))
    assert trunk.sessions.owners == [b"conn-1"]


def test_results_go_where_the_states_came_from(trunk: Trunk) -> None:
    work = begun(trunk.sessions.receive(extend(0), 0.0, DOOR))
    assert only(trunk.sessions.computed(work, states(1))).to == DOOR
    assert trunk.sessions.direct == 1
    work = begun(trunk.sessions.receive(extend(1), 0.0))
    assert only(trunk.sessions.computed(work, states(1))).to == BROKER
    assert trunk.sessions.direct == 0


def test_a_failed_step_is_told_where_the_states_came_from(trunk: Trunk) -> None:
    work = begun(trunk.sessions.receive(extend(0), 0.0, DOOR))
    assert only(trunk.sessions.failed(work, StepFailed("compute failed"))).to == DOOR


def test_states_sent_again_another_way_take_the_result_there(trunk: Trunk) -> None:
    work = begun(trunk.sessions.receive(extend(0), 0.0, DOOR))
    assert trunk.sessions.receive(extend(0), 0.0) == []
    assert only(trunk.sessions.computed(work, states(1))).to == BROKER
    late = only(trunk.sessions.receive(extend(0), 0.0, OTHER_DOOR))
    assert (late.to, Frame.read(late.parts).envelope.kind) == (OTHER_DOOR, Kind.RESULT)


def test_what_is_refused_does_not_draw_results_to_itself(trunk: Trunk) -> None:
    work = begun(trunk.sessions.receive(extend(0), 0.0))
    conflict = extend(3, seq=101)
    assert only(trunk.sessions.receive(conflict, 0.0, DOOR)).to == DOOR
    assert only(trunk.sessions.computed(work, states(1))).to == BROKER


def test_a_renewal_is_answered_where_it_was_asked_and_moves_nothing_else(trunk: Trunk) -> None:
    work = begun(trunk.sessions.receive(extend(0), 0.0))
    renew = Frame.build(Kind.RENEW, Nothing(), session=ANNA, seq=7)
    renewed = only(trunk.sessions.receive(renew, 5.0, DOOR))
    assert (renewed.to, Frame.read(renewed.parts).envelope.kind) == (DOOR, Kind.RENEWED)
    assert only(trunk.sessions.computed(work, states(1))).to == BROKER
    assert trunk.sessions.expire(14.99) == []
    assert trunk.sessions.ids == [ANNA]


def test_work_past_the_broker_belongs_to_the_client_that_the_broker_named(trunk: Trunk) -> None:
    work = begun(trunk.sessions.receive(extend(0), 0.0, DOOR))
    assert work.owner == Owner(b"conn-1", ANNA)


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in (Kind.EXTEND, Kind.RENEW)])
@pytest.mark.parametrize("session", [ANNA, BERT, b""])
def test_all_other_kinds_are_refused_past_the_broker(
    trunk: Trunk, kind: Kind, session: bytes
) -> None:
    opening = Open(fingerprint=FINGERPRINT, max_positions=20, dtype=WireDtype.FP16)
    reply = only(trunk.sessions.receive(Frame.build(kind, opening, session=session), 0.0, DOOR))
    assert reply.to == DOOR
    assert type(Frame.read(reply.parts).refusal()) is MalformedFrame
    assert trunk.sessions.ids == [ANNA]


@pytest.mark.parametrize("session", [BERT, b""])
def test_states_of_no_session_are_refused(trunk: Trunk, session: bytes) -> None:
    reply = only(trunk.sessions.receive(extend(0, session), 0.0, DOOR))
    assert reply.to == DOOR
    assert type(Frame.read(reply.parts).refusal()) is SessionUnknown


def test_what_comes_by_one_of_two_brokers_is_answered_by_it() -> None:
    """And the end of the session is told where its client was heard from last."""
    second = of_broker(1)
    trunk = Trunk()
    asked = Open(fingerprint=FINGERPRINT, max_positions=20, dtype=WireDtype.FP16)
    opened = Frame.build(Kind.OPEN, asked, session=ANNA)
    assert only(trunk.sessions.receive(opened, 0.0, second)).to == second
    work = begun(trunk.sessions.receive(extend(0), 0.0, second))
    assert only(trunk.sessions.computed(work, states(1))).to == second
    assert trunk.sessions.direct == 0
    renew = Frame.build(Kind.RENEW, Nothing(), session=ANNA)
    assert only(trunk.sessions.receive(renew, 1.0, BROKER)).to == BROKER
    assert trunk.sessions.broker_of(ANNA) == BROKER
    work = begun(trunk.sessions.receive(extend(1), 1.0, DOOR))
    assert trunk.sessions.broker_of(ANNA) == BROKER
    told = [action for action in trunk.sessions.expire(1e6) if isinstance(action, Reply)]
    assert [reply.to for reply in told] == [second, BROKER]  # the second only frees its room
