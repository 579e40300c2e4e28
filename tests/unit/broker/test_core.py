"""What the broker does with each message: placing, relaying, losing nodes and clients."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.messages import Side
from fedsea_mq.errors import (
    Busy,
    FedSeaError,
    MalformedFrame,
    SessionUnknown,
)
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Nothing, Open, StatusReport
from fedsea_mq.protocol.payload import WireDtype
from tests.unit.broker.placing import (
    EXTEND,
    LLAMA,
    S1,
    S2,
    S3,
    Placing,
    accept,
    closes,
    load,
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


class TestRelaying:
    def test_an_open_goes_to_the_node_and_its_answer_back_untouched(self, placing: Placing) -> None:
        sent = placing.open(ANNA, S1)
        assert (sent.side, sent.peer) == (Side.NODES, A)
        answer = accept(S1, seq=5)
        (back,) = placing.node_says(A, answer)
        assert (back.side, back.peer, list(back.parts)) == (Side.CLIENTS, ANNA, answer.parts())

    def test_the_node_is_told_which_connection_opened_whatever_the_client_claims(
        self, placing: Placing
    ) -> None:
        told = []
        for peer, session in ((ANNA, S1), (ANNA, S2), (BERT, S3)):
            claimed = Open(LLAMA, 4, WireDtype.FP16, client=b"somebody else", urgency=2)
            (sent,) = placing.client_says(peer, Frame.build(Kind.OPEN, claimed, session=session))
            told.append(read(sent).body(Open))
        assert told[0] == told[1] == replace(told[2], client=told[0].client)
        assert told[0] == Open(LLAMA, 4, WireDtype.FP16, client=told[0].client, urgency=2)
        # A name of its own, from which nobody learns how the broker's socket numbers its peers.
        assert len({one.client for one in told} | {ANNA, BERT, b"somebody else"}) == 5

    def test_the_frames_of_a_session_are_relayed_part_for_part(self, placing: Placing) -> None:
        placing.opened(ANNA, S1)
        frame = Frame.build(Kind.EXTEND, EXTEND, session=S1, seq=6, payload=[b"states", b"s"])
        parts = frame.parts()
        (sent,) = placing.core.from_client(ANNA, parts, placing.now)
        assert sent.parts is parts

    def test_a_body_is_not_the_brokers_to_judge(self, placing: Placing) -> None:
        placing.opened(ANNA, S1)
        parts = [result(S1).parts()[0], b"sealed by the client, for the trunk alone", b"payload"]
        (sent,) = placing.core.from_node(A, parts, placing.now)
        assert list(sent.parts) == parts

    def test_a_client_that_comes_from_another_connection_is_followed(
        self, placing: Placing
    ) -> None:
        placing.opened(ANNA, S1)
        placing.extend(b"anna, reconnected", S1)
        (sent,) = placing.node_says(A, result(S1))
        assert sent.peer == b"anna, reconnected"

    def test_a_session_without_a_route_is_unknown(self, placing: Placing) -> None:
        refused(placing.extend(ANNA, S1), SessionUnknown)
        assert placing.close(ANNA, S1) == []

    def test_a_node_may_not_speak_for_another_nodes_session(self, placing: Placing) -> None:
        placing.register(B)
        holder = placing.opened(ANNA, S1)
        other = B if holder == A else A
        (sent,) = placing.node_says(other, result(S1))
        assert closes(sent, other, S1)
        assert placing.extend(ANNA, S1).peer == holder

    @pytest.mark.parametrize("kind", [Kind.CLOSE, Kind.ERROR, Kind.BUSY])
    def test_a_node_cannot_end_another_nodes_session(self, placing: Placing, kind: Kind) -> None:
        placing.register(B)
        holder = placing.opened(ANNA, S1)
        other = B if holder == A else A
        assert placing.node_says(other, Frame.build(kind, Nothing(), session=S1)) == []
        assert placing.sessions == 1

    def test_given_a_result_of_a_session_that_has_no_route_then_its_node_is_told_to_close(
        self, placing: Placing
    ) -> None:
        (sent,) = placing.node_says(A, result(S1))
        assert closes(sent, A, S1)


class TestRoutesNeverLeak:
    def test_given_a_close_by_the_client_then_the_node_hears_it_and_the_route_is_gone(
        self, placing: Placing
    ) -> None:
        placing.opened(ANNA, S1)
        (sent,) = placing.close(ANNA, S1)
        assert closes(sent, A, S1)
        assert placing.sessions == 0

    def test_given_a_close_by_the_node_then_the_client_hears_it_and_the_route_is_gone(
        self, placing: Placing
    ) -> None:
        placing.opened(ANNA, S1)
        closing = Frame.closing(SessionUnknown("lease ran out"), S1)
        (sent,) = placing.node_says(A, closing)
        assert (sent.side, sent.peer) == (Side.CLIENTS, ANNA)
        assert placing.sessions == 0

    @pytest.mark.parametrize("error", [Busy("full"), MalformedFrame("no")])
    def test_given_a_refused_open_then_the_route_is_gone(
        self, placing: Placing, error: FedSeaError
    ) -> None:
        sent = placing.open(ANNA, S1)
        (back,) = placing.node_says(A, Frame.error(error, read(sent).envelope))
        refused(back, type(error))
        assert placing.sessions == 0

    def test_given_an_error_within_an_accepted_session_then_it_stays(
        self, placing: Placing
    ) -> None:
        placing.opened(ANNA, S1)
        sent = placing.extend(ANNA, S1)
        placing.node_says(A, Frame.error(MalformedFrame("no"), read(sent).envelope))
        assert placing.sessions == 1

    def test_given_an_open_that_no_node_fits_then_there_is_no_route(self, placing: Placing) -> None:
        placing.open(ANNA, S1, fingerprint="ef" * 32)
        placing.open(ANNA, S2, positions=100)
        assert placing.sessions == 1

    def test_given_the_same_open_again_then_it_takes_the_same_route(self, placing: Placing) -> None:
        placing.register(B)
        assert placing.open(ANNA, S1).peer == placing.open(ANNA, S1).peer
        assert placing.sessions == 1

    def test_a_thousand_sessions_opened_and_closed_leave_nothing(self, placing: Placing) -> None:
        for number in range(1000):
            session = number.to_bytes(16, "little")
            placing.opened(ANNA, session, positions=1)
            placing.close(ANNA, session)
            placing.heartbeat(A)
        assert placing.sessions == 0

    def test_given_a_late_accept_after_the_client_closed_then_the_node_frees_it(
        self, placing: Placing
    ) -> None:
        placing.open(ANNA, S1)
        placing.close(ANNA, S1)
        (sent,) = placing.node_says(A, accept(S1))
        assert closes(sent, A, S1)


class TestStatus:
    def test_it_counts_sessions_relayed_frames_bytes_and_errors(self, placing: Placing) -> None:
        before = placing.status()
        placing.opened(ANNA, S1)
        relayed = placing.extend(ANNA, S1)
        placing.extend(ANNA, S2)
        after = placing.status()
        assert after.sessions == 1
        assert after.frames_relayed == before.frames_relayed + 3  # open, accept, extend
        assert after.bytes_relayed > sum(len(part) for part in relayed.parts)
        assert after.errors == before.errors + 1
        assert after.uptime_s == placing.now

    def test_it_shows_each_nodes_load_and_silence(self, placing: Placing) -> None:
        told = replace(load(free=40), sessions=3)
        placing.heartbeat(A, told)
        placing.now += 0.15
        (node,) = placing.status().nodes
        assert (node.name, node.silent_ms, node.load) == ("node-a", 250, told)

    def test_asked_again_at_once_it_answers_from_the_last_report(self, placing: Placing) -> None:
        first = placing.status()
        placing.opened(ANNA, S1)
        (sent,) = placing.client_says(BERT, Frame.build(Kind.STATUS, Nothing(), seq=9))
        again = read(sent)
        assert (sent.peer, again.envelope.seq) == (BERT, 9)
        assert again.body(StatusReport) == first
        assert placing.status().sessions == 1


class TestFaults:
    @pytest.mark.parametrize(
        "kind", [Kind.ACCEPT, Kind.RESULT, Kind.REGISTER, Kind.HEARTBEAT, Kind.LEAVE, Kind.ERROR]
    )
    def test_a_client_may_not_send_what_nodes_send(self, placing: Placing, kind: Kind) -> None:
        (sent,) = placing.client_says(ANNA, Frame.build(kind, Nothing(), session=S1))
        assert (sent.side, sent.peer) == (Side.CLIENTS, ANNA)
        refused(sent, MalformedFrame)

    @pytest.mark.parametrize("kind", [Kind.OPEN, Kind.EXTEND, Kind.STATUS, Kind.REGISTERED])
    def test_a_node_may_not_send_what_clients_send(self, placing: Placing, kind: Kind) -> None:
        (sent,) = placing.node_says(A, Frame.build(kind, Nothing(), session=S1))
        refused(sent, MalformedFrame)

    def test_an_open_without_a_session_id_is_malformed(self, placing: Placing) -> None:
        refused(placing.open(ANNA, b""), MalformedFrame)
        assert placing.sessions == 0

    @pytest.mark.parametrize("parts", [[], [b""], [b"\xc1", b""], [b""] * 5])
    def test_given_bytes_that_are_no_frame_then_their_sender_alone_hears_of_it(
        self, placing: Placing, parts: list[bytes]
    ) -> None:
        (to_client,) = placing.core.from_client(ANNA, parts, placing.now)
        (to_node,) = placing.core.from_node(A, parts, placing.now)
        assert (to_client.side, to_client.peer) == (Side.CLIENTS, ANNA)
        assert (to_node.side, to_node.peer) == (Side.NODES, A)
        refused(to_client, MalformedFrame)
        refused(to_node, MalformedFrame)
