"""Nodes and clients that vanish, and a broker that starts anew: nobody waits in vain."""

from __future__ import annotations

import pytest

from broker.core import BrokerCore
from broker.messages import Side
from fedsea_mq.errors import Busy, NodeUnknown, SessionLost, SessionUnknown
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Nothing, Registered
from tests.unit.broker.placing import (
    S1,
    S2,
    TERMS,
    Placing,
    accept,
    closes,
    load,
    offer,
    read,
    refused,
    result,
)

A, B = b"node-a", b"node-b"
ANNA, BERT = b"anna", b"bert"


@pytest.fixture
def placing() -> Placing:
    """A broker with one node."""
    placing = Placing()
    placing.register(A)
    return placing


class TestLosing:
    def test_given_a_silent_node_then_its_clients_are_told_and_others_are_not(
        self, placing: Placing
    ) -> None:
        placing.opened(ANNA, S1, positions=1)
        placing.register(B)
        assert placing.opened(BERT, S2, positions=1) == B
        placing.now += 5.0
        placing.heartbeat(B)
        assert placing.tick() == []
        placing.now += 0.1
        (sent,) = placing.tick()
        assert (sent.side, sent.peer) == (Side.CLIENTS, ANNA)
        assert read(sent).envelope.kind is Kind.CLOSE
        refused(sent, SessionLost)
        assert placing.sessions == 1
        assert [node.name for node in placing.status().nodes] == ["node-b"]

    def test_given_a_broker_that_was_held_up_then_no_node_is_taken_for_silent(
        self, placing: Placing
    ) -> None:
        """What they sent meanwhile is not read yet."""
        placing.now = placing.ticked_at = placing.now + 60.0
        assert all(read(s).envelope.kind is Kind.HEARTBEAT for s in placing.core.tick(placing.now))
        placing.now += 4.0
        assert placing.tick() == []
        assert len(placing.status().nodes) == 1
        placing.now += 2.0
        placing.tick()
        assert placing.status().nodes == []

    def test_given_a_node_that_never_answers_for_a_session_then_its_client_is_told(
        self, placing: Placing
    ) -> None:
        """The session's room is there again, and a late answer has the node let go as well."""
        placing.open(ANNA, S1)
        placing.now += 4.0
        placing.heartbeat(A)
        assert placing.tick() == []
        assert placing.open(ANNA, S1).peer == A  # asked once more, it waits anew
        placing.now += 4.0
        placing.heartbeat(A)
        assert placing.tick() == []
        placing.now += 1.5
        (told,) = placing.tick()
        assert (told.side, told.peer) == (Side.CLIENTS, ANNA)
        refused(told, SessionLost)
        assert placing.sessions == 0
        (late,) = placing.node_says(A, accept(S1))
        assert closes(late, A, S1)

    def test_given_a_dead_node_that_speaks_again_then_it_must_register(
        self, placing: Placing
    ) -> None:
        placing.now += 5.1
        placing.tick()
        (sent,) = placing.heartbeat(A)
        refused(sent, NodeUnknown)

    def test_given_a_node_that_leaves_then_its_clients_are_told_at_once(
        self, placing: Placing
    ) -> None:
        placing.opened(ANNA, S1)
        (sent,) = placing.node_says(A, Frame.build(Kind.LEAVE, Nothing()))
        refused(sent, SessionLost)
        assert placing.status().nodes == []

    def test_given_an_undelivered_client_then_its_nodes_close_its_sessions_only(
        self, placing: Placing
    ) -> None:
        placing.opened(ANNA, S1)
        placing.opened(BERT, S2)
        (back,) = placing.node_says(A, result(S1))
        (sent,) = placing.core.undelivered(back.side, back.peer)
        assert closes(sent, A, S1)
        assert placing.sessions == 1

    def test_idle_clients_with_a_session_get_one_heartbeat_in_half_the_timeout(
        self, placing: Placing
    ) -> None:
        placing.opened(ANNA, S1)
        placing.opened(ANNA, S2)
        placing.opened(BERT, b"3" * 16)
        assert placing.beats() == []  # all were just answered
        beats = placing.beats()
        assert sorted(sent.peer for sent in beats) == [ANNA, BERT]
        assert {read(sent).envelope.kind for sent in beats} == {Kind.HEARTBEAT}
        assert placing.core.tick(placing.now) == []

    def test_a_client_that_was_answered_needs_no_heartbeat(self, placing: Placing) -> None:
        placing.opened(ANNA, S1)
        placing.opened(BERT, S2)
        placing.beats()
        placing.node_says(A, result(S1))
        assert [sent.peer for sent in placing.beats()] == [BERT]
        assert sorted(sent.peer for sent in placing.beats()) == [ANNA, BERT]

    def test_given_a_client_that_no_heartbeat_reaches_then_its_sessions_are_freed(
        self, placing: Placing
    ) -> None:
        placing.opened(ANNA, S1)
        placing.beats()
        (beat,) = placing.beats()
        (sent,) = placing.core.undelivered(beat.side, beat.peer)
        assert closes(sent, A, S1)
        assert placing.beats() == []

    def test_given_an_undelivered_node_then_its_clients_are_told(self, placing: Placing) -> None:
        placing.opened(ANNA, S1)
        to_node = placing.extend(ANNA, S1)
        (sent,) = placing.core.undelivered(to_node.side, to_node.peer)
        refused(sent, SessionLost)
        assert placing.sessions == 0

    def test_room_for_a_session_that_no_node_ever_answered_for_is_given_back(
        self, placing: Placing
    ) -> None:
        assert placing.open(ANNA, S1, positions=100).peer == A
        for _ in range(6):
            placing.now += 1.0
            placing.heartbeat(A)
            placing.tick()
        assert placing.sessions == 0
        assert placing.open(BERT, S2, positions=100).peer == A
        # An answer that comes all the same is of a session that nobody has.
        (sent,) = placing.node_says(A, accept(S1))
        assert closes(sent, A, S1)

    def test_a_session_that_is_still_asked_for_is_waited_for(self, placing: Placing) -> None:
        placing.open(ANNA, S1)
        for _ in range(6):
            placing.now += 1.0
            placing.heartbeat(A)
            placing.open(ANNA, S1)
            placing.tick()
        assert placing.sessions == 1


class TestRestart:
    def test_an_answer_of_a_node_that_has_yet_to_register_ends_no_session(self) -> None:
        """It was queued while the broker was away, and is here before the node's sessions are."""
        placing = Placing(now=1.0)
        assert placing.node_says(A, result(S1)) == []
        placing.register(A, offer("a", sessions=[S1]))
        assert placing.extend(ANNA, S1).peer == A
        # One of a session that the node did not name is of no use to anybody.
        (sent,) = placing.node_says(A, result(S2))
        assert closes(sent, A, S2)

    def test_an_answer_under_the_new_address_of_a_node_ends_no_session(
        self, placing: Placing
    ) -> None:
        placing.opened(ANNA, S1)
        assert placing.node_says(B, result(S1)) == []
        assert placing.extend(ANNA, S1).peer == A

    def test_a_session_that_was_sent_to_two_nodes_is_its_holders_and_takes_no_room_elsewhere(
        self,
    ) -> None:
        """The broker was restarted before it was answered, and the first node is there later."""
        placing = Placing(now=1.0)
        placing.register(B)
        assert placing.open(ANNA, S1, positions=100).peer == B
        placing.register(A, offer("a", free=0, sessions=[S1]))
        assert placing.extend(ANNA, S1).peer == A
        (sent,) = placing.node_says(B, accept(S1))
        assert closes(sent, B, S1)
        assert placing.open(BERT, S2, positions=100).peer == B

    def test_a_session_goes_on_where_it_was_accepted_since_and_not_where_it_was_before(
        self,
    ) -> None:
        placing = Placing(now=1.0)
        placing.register(B)
        assert placing.opened(ANNA, S1) == B
        (_, told) = placing.register(A, offer("a", sessions=[S1, S2]))
        assert closes(told, A, S1)
        assert placing.extend(ANNA, S1).peer == B
        assert placing.extend(ANNA, S2).peer == A
        # The same node under another address is another matter.
        placing.register(b"new address", offer("node-b", sessions=[S1]))
        assert placing.extend(ANNA, S1).peer == b"new address"

    def test_a_node_that_holds_fewer_sessions_than_are_routed_to_it_says_which(
        self, placing: Placing
    ) -> None:
        placing.opened(ANNA, S1)
        placing.opened(ANNA, S2)
        (told,) = placing.heartbeat(A, load(sessions=1))
        refused(told, NodeUnknown)
        placing.register(A, offer("a", sessions=[S2]))
        assert placing.sessions == 1
        (echo,) = placing.heartbeat(A, load(sessions=1))
        assert read(echo).envelope.kind is Kind.HEARTBEAT

    def test_given_a_young_broker_then_unknown_sessions_are_told_to_wait(self) -> None:
        placing = Placing(now=1.0)
        told = refused(placing.extend(ANNA, S1), Busy)
        assert isinstance(told, Busy)
        assert told.retry_after_s == 1.0
        placing.now = 5.1
        refused(placing.extend(ANNA, S1), SessionUnknown)

    def test_given_a_young_broker_without_nodes_then_opens_are_told_to_wait(self) -> None:
        placing = Placing(now=1.0)
        refused(placing.open(ANNA, S1), Busy)
        assert placing.sessions == 0
        placing.register(A)
        assert placing.open(ANNA, S1).peer == A

    def test_given_a_node_that_registers_with_its_sessions_then_their_clients_go_on(self) -> None:
        placing = Placing(BrokerCore(TERMS, started_at=0.0), now=1.0)
        placing.register(A, offer("a", sessions=[S1, S2]))
        assert placing.sessions == 2
        assert placing.extend(ANNA, S1).peer == A
        (sent,) = placing.node_says(A, result(S1))
        assert (sent.side, sent.peer) == (Side.CLIENTS, ANNA)

    def test_given_a_client_that_has_not_spoken_since_then_its_frames_are_dropped(self) -> None:
        placing = Placing(now=1.0)
        placing.register(A, offer("a", sessions=[S1]))
        assert placing.node_says(A, result(S1)) == []
        assert placing.sessions == 1

    def test_given_a_node_that_registers_again_then_its_clients_stay_known(
        self, placing: Placing
    ) -> None:
        placing.opened(ANNA, S1)
        placing.register(A, offer("a", sessions=[S1]))
        (sent,) = placing.node_says(A, result(S1))
        assert sent.peer == ANNA

    def test_registration_is_answered_with_the_terms(self, placing: Placing) -> None:
        (sent,) = placing.register(B)
        assert read(sent).body(Registered) == Registered(heartbeat_ms=1000, timeout_ms=5000)
