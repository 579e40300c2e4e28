"""Who finds no room is kept waiting, and has the next: at once, in turn."""

from __future__ import annotations

import pytest

from broker.messages import Send, Side
from broker.waiting import GRACE_S, HOLD_S, PATIENCE_S
from fedsea_mq.errors import Busy, FingerprintMismatch
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Nothing, Open
from fedsea_mq.protocol.payload import WireDtype
from tests.unit.broker.placing import LLAMA, QWEN, S1, S2, S3, Placing, load, offer, read, refused

A, B = b"node-a", b"node-b"
ANNA, BERT, CARL = b"anna", b"bert", b"carl"
S4 = b"4" * 16


@pytest.fixture
def placing() -> Placing:
    """A broker with one node, which Anna has all of."""
    placing = Placing()
    placing.register(A)
    placing.opened(ANNA, S1, positions=100)
    return placing


def asks(placing: Placing, client: bytes, session: bytes, positions: int = 100) -> list[Send]:
    body = Open(fingerprint=LLAMA, max_positions=positions, dtype=WireDtype.FP16)
    return placing.client_says(client, Frame.build(Kind.OPEN, body, session=session, seq=5))


def waits(placing: Placing, client: bytes, session: bytes, positions: int = 100) -> None:
    """It is refused, asks again as it was told to, and hears nothing."""
    (told,) = asks(placing, client, session, positions)
    busy = refused(told, Busy)
    assert isinstance(busy, Busy)
    placing.now += busy.retry_after_s
    assert asks(placing, client, session, positions) == []


def opened(sends: list[Send]) -> list[bytes]:
    """The sessions that nodes are asked to open."""
    frames = [read(sent) for sent in sends if sent.side is Side.NODES]
    return [frame.envelope.session for frame in frames if frame.envelope.kind is Kind.OPEN]


def test_room_goes_to_who_waits_and_not_to_who_asks_when_it_is_made(placing: Placing) -> None:
    waits(placing, BERT, S2)
    waits(placing, CARL, S3)
    assert opened(placing.close(ANNA, S1)) == [S2]
    (told,) = asks(placing, ANNA, S4)
    refused(told, Busy)
    assert opened(placing.close(BERT, S2)) == [S3]


def test_the_status_says_how_many_wait(placing: Placing) -> None:
    assert placing.status().waiting == 0
    waits(placing, BERT, S2)
    waits(placing, CARL, S3)
    assert placing.status().waiting == 2
    placing.close(ANNA, S1)
    assert placing.status().waiting == 1


def test_a_client_with_many_that_wait_gets_no_more_than_one_with_one(placing: Placing) -> None:
    waits(placing, BERT, S2)
    waits(placing, BERT, S3)
    waits(placing, CARL, S4)
    assert opened(placing.close(ANNA, S1)) == [S2]
    assert opened(placing.close(BERT, S2)) == [S4]
    assert opened(placing.close(CARL, S4)) == [S3]


def test_the_load_that_a_node_tells_lets_in_who_waits(placing: Placing) -> None:
    waits(placing, BERT, S2)
    assert opened(placing.heartbeat(A, load(free=100))) == [S2]


def test_a_node_that_joins_lets_in_who_waits(placing: Placing) -> None:
    waits(placing, BERT, S2)
    assert opened(placing.register(B)) == [S2]


def test_who_is_kept_waiting_long_is_told_to_ask_again_and_keeps_its_turn(
    placing: Placing,
) -> None:
    waits(placing, BERT, S2)
    placing.now += HOLD_S / 2
    waits(placing, CARL, S3)
    placing.now += HOLD_S / 2
    (told,) = placing.tick()
    assert (told.peer, read(told).envelope.session) == (BERT, S2)
    refused(told, Busy)
    assert asks(placing, BERT, S2) == []
    assert opened(placing.close(ANNA, S1)) == [S2]


def test_nobody_is_waited_for_who_does_not_come_back(placing: Placing) -> None:
    waits(placing, BERT, S2)
    placing.now += HOLD_S
    placing.heartbeat(A, load(free=0))
    (told,) = placing.tick()
    refused(told, Busy)
    placing.close(ANNA, S1)
    assert opened(asks(placing, CARL, S3)) == [S3]
    placing.now += GRACE_S
    placing.tick()
    assert opened(placing.close(CARL, S3)) == []


def test_who_gives_up_waits_no_longer(placing: Placing) -> None:
    waits(placing, BERT, S2)
    waits(placing, CARL, S3)
    assert placing.close(BERT, S2) == []
    assert opened(placing.close(ANNA, S1)) == [S3]


def test_a_copy_of_a_request_that_is_held_changes_nothing(placing: Placing) -> None:
    waits(placing, BERT, S2)
    assert asks(placing, BERT, S2) == []
    assert opened(placing.close(ANNA, S1)) == [S2]


def test_small_sessions_pass_a_large_one_only_until_it_has_waited_long(placing: Placing) -> None:
    waits(placing, BERT, S2, positions=100)
    placing.heartbeat(A, load(free=30))
    assert opened(asks(placing, CARL, S3, positions=10)) == [S3]
    placing.now += PATIENCE_S
    placing.heartbeat(A, load(free=30))
    (told,) = asks(placing, CARL, S4, positions=10)
    refused(told, Busy)


def test_who_waits_for_one_model_is_in_nobodys_way_for_another(placing: Placing) -> None:
    waits(placing, BERT, S2)
    placing.register(B, offer("b", fingerprint=QWEN))
    assert read(placing.open(CARL, S3, fingerprint=QWEN)).envelope.kind is Kind.OPEN


def test_who_waits_for_a_model_whose_nodes_are_away_has_room_when_one_comes_back(
    placing: Placing,
) -> None:
    waits(placing, BERT, S2)
    placing.node_says(A, Frame.build(Kind.LEAVE, Nothing()))
    assert opened(placing.register(B, offer("b", fingerprint=QWEN))) == []
    assert opened(placing.register(A)) == [S2]


def test_who_asks_for_a_model_that_was_never_here_is_told_so(placing: Placing) -> None:
    refused(placing.open(BERT, S2, fingerprint=QWEN), FingerprintMismatch)


def test_there_is_an_end_to_who_is_kept_and_the_others_are_sent_away_for_longer(
    placing: Placing,
) -> None:
    pauses = []
    for number in range(40):
        (told,) = asks(placing, BERT, number.to_bytes(16, "big"))
        busy = refused(told, Busy)
        assert isinstance(busy, Busy)
        pauses.append(busy.retry_after_s)
    assert pauses[:16] == [pauses[0]] * 16
    assert all(pause >= 0.5 for pause in pauses[16:])
