"""Training sessions: placed at the nodes of their run, and relayed like any other."""

from __future__ import annotations

import pytest

from broker.core import BrokerCore
from broker.messages import Side
from fedsea_mq.errors import Busy, MalformedFrame, RunUnknown, SessionUnknown
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Nothing, Open
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.protocol.training_messages import Enlist
from tests.unit.broker.placing import (
    LLAMA,
    S1,
    S2,
    S3,
    TERMS,
    Placing,
    accept,
    offer,
    read,
    refused,
)

ANNA, BERT = b"anna", b"bert"
TRUNK, OTHER, PLAIN, AGGREGATOR = b"trunk", b"other", b"plain", b"aggregator"
UP = (
    Kind.FORWARD,
    Kind.BACKWARD,
    Kind.STEP,
    Kind.BEGIN_ROUND,
    Kind.END_ROUND,
    Kind.ASK,
    Kind.UPDATE,
    Kind.SECURE,
    Kind.RENEW,
)
DOWN = (
    Kind.OUTPUTS,
    Kind.GRADIENT,
    Kind.STEPPED,
    Kind.ROUND_STATE,
    Kind.TASK,
    Kind.UPDATED,
    Kind.SECURED,
    Kind.RENEWED,
)


@pytest.fixture
def placing() -> Placing:
    """A run's trunk and aggregator, a trunk of another run, and one that only serves."""
    placing = Placing()
    placing.register(TRUNK, offer("trunk", free=10, run="silos"))
    placing.register(OTHER, offer("other", free=50, run="others"))
    placing.register(PLAIN, offer("plain", free=90))
    placing.register(AGGREGATOR, offer("agg", free=999, run="silos", role=Role.AGGREGATOR))
    return placing


def test_a_party_is_enlisted_at_the_node_of_its_run_in_the_role_it_asks_for(
    placing: Placing,
) -> None:
    for role, node in ((Role.TRUNK, TRUNK), (Role.AGGREGATOR, AGGREGATOR)):
        sent = placing.enlist(ANNA, S1 if role is Role.TRUNK else S2, role)
        assert (sent.side, sent.peer) == (Side.NODES, node)
        # The name that fairness goes by is the broker's, whatever the client wrote.
        assert read(sent).body(Enlist).client not in (b"claimed", ANNA)
    assert placing.enlist(BERT, S3, Role.TRUNK, "others").peer == OTHER


def test_of_two_trunks_of_a_run_the_first_by_name_has_it(placing: Placing) -> None:
    placing.register(b"second", offer("atrunk", run="silos"))
    assert placing.enlist(ANNA, S1, Role.TRUNK).peer == b"second"


def test_given_no_such_run_then_the_party_is_told(placing: Placing) -> None:
    told = refused(placing.enlist(ANNA, S1, Role.AGGREGATOR, "others"), RunUnknown)
    assert "aggregator of run others" in str(told)
    # A broker that has just begun does not know yet.
    young = Placing(core=BrokerCore(TERMS, started_at=99.0))
    refused(young.enlist(ANNA, S1, Role.TRUNK), Busy)
    young.register(AGGREGATOR, offer("agg", run="silos", role=Role.AGGREGATOR))
    refused(young.open(ANNA, S2), Busy)


def test_no_session_is_opened_at_an_aggregator(placing: Placing) -> None:
    for session in (S1, S2, S3):
        assert placing.open(ANNA, session, positions=20).peer != AGGREGATOR
    alone = Placing()
    alone.register(AGGREGATOR, offer("agg", run="silos", role=Role.AGGREGATOR))
    refused(alone.open(ANNA, S1), Busy)


def test_frames_of_training_are_relayed_both_ways_untouched(placing: Placing) -> None:
    placing.enlist(ANNA, S1, Role.TRUNK)
    placing.node_says(TRUNK, accept(S1))
    for kind in UP:
        asked = Frame.build(kind, Nothing(), session=S1, seq=7, payload=[b"states"])
        (sent,) = placing.client_says(ANNA, asked)
        assert (sent.side, sent.peer, list(sent.parts)) == (Side.NODES, TRUNK, asked.parts())
    for kind in DOWN:
        said = Frame.build(kind, Nothing(), session=S1, seq=7)
        (sent,) = placing.node_says(TRUNK, said)
        assert (sent.side, sent.peer, list(sent.parts)) == (Side.CLIENTS, ANNA, said.parts())
    # Not by whom they are not for, and not in a session that nobody holds.
    for kind in DOWN:
        (sent,) = placing.client_says(ANNA, Frame.build(kind, Nothing(), session=S1))
        refused(sent, MalformedFrame)
    for kind in UP:
        (sent,) = placing.client_says(ANNA, Frame.build(kind, Nothing(), session=S2))
        refused(sent, SessionUnknown)


def test_a_body_of_the_other_kind_opens_nothing(placing: Placing) -> None:
    body = Open(LLAMA, 4, WireDtype.FP16)
    (sent,) = placing.client_says(ANNA, Frame.build(Kind.ENLIST, body, session=S1))
    refused(sent, MalformedFrame)
    assert placing.sessions == 0


def test_a_lost_node_closes_its_training_sessions_too(placing: Placing) -> None:
    placing.enlist(ANNA, S1, Role.AGGREGATOR)
    placing.node_says(AGGREGATOR, accept(S1))
    (sent,) = placing.node_says(AGGREGATOR, Frame.build(Kind.LEAVE, Nothing()))
    assert (sent.peer, read(sent).envelope.kind) == (ANNA, Kind.CLOSE)


def test_the_status_says_role_and_run(placing: Placing) -> None:
    said = {node.name: (node.role, node.run) for node in placing.status().nodes}
    assert said == {
        "trunk": (Role.TRUNK, "silos"),
        "other": (Role.TRUNK, "others"),
        "plain": (Role.TRUNK, None),
        "agg": (Role.AGGREGATOR, "silos"),
    }
