"""What the broker tells of sessions, by their trace: placed, refused, over; and what it counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.core import BrokerCore
from broker.events import SessionEvent, SessionOver, SessionPlaced, SessionRefused
from broker.messages import Send, Side
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Open
from tests.unit.broker.placing import QWEN, S1, S2, TERMS, Placing, accept, load, offer

TRACE = bytes(range(1, 25))
NODE, CLIENT = b"node-a", b"client"


class Watched(Placing):
    """A broker with one node, and what it tells."""

    def __init__(self, free: int = 100) -> None:
        self.told: list[SessionEvent] = []
        super().__init__(BrokerCore(TERMS, 0.0, on_event=self.told.append))
        self.register(NODE, offer("node-a", free))

    def ask(self, session: bytes, positions: int = 10, **other: str) -> list[Send]:
        frame = self.opening(session, positions, **other)
        body = replace(frame.body(Open), trace=TRACE)
        return self.client_says(CLIENT, Frame.build(Kind.OPEN, body, session=session, seq=5))


def test_a_session_is_placed_and_over_when_its_client_says_so() -> None:
    broker = Watched()
    broker.ask(S1)
    broker.node_says(NODE, accept(S1))
    assert broker.core.sessions == broker.core.nodes(Role.TRUNK) == 1
    broker.close(CLIENT, S1)
    assert broker.told == [SessionPlaced(TRACE, "node-a", 0.0), SessionOver(TRACE)]
    assert broker.core.sessions == 0


def test_the_node_is_told_the_trace() -> None:
    broker = Watched()
    (sent,) = broker.ask(S1)
    assert Frame.read(list(sent.parts)).body(Open).trace == TRACE


@pytest.mark.parametrize("gone", ["node", "client"])
def test_a_session_that_the_broker_ends_says_why(gone: str) -> None:
    broker = Watched()
    broker.ask(S1)
    broker.node_says(NODE, accept(S1))
    if gone == "node":
        broker.now += 6
        broker.tick()
    else:
        broker.core.undelivered(Side.CLIENTS, CLIENT)
    assert broker.told[-1] == SessionOver(TRACE, "SessionLost")


def test_who_is_refused_is_told_of_with_the_reason_and_counted() -> None:
    broker = Watched()
    broker.ask(S1, fingerprint=QWEN)
    assert broker.told == [SessionRefused(TRACE, "FingerprintMismatch", 0.0)]
    assert broker.core.counters.refused == {"fingerprint": 1}
    assert broker.core.counters.busy == 0


def test_who_waits_for_room_is_placed_so_long_after_it_asked() -> None:
    broker = Watched(free=10)
    broker.ask(S1)
    broker.ask(S2)
    assert broker.told[-1] == SessionRefused(TRACE, "Busy", 0.0)
    broker.ask(S2)  # its request is held now
    assert broker.core.waiting == 1
    broker.now += 1.5
    broker.close(CLIENT, S1)
    broker.heartbeat(NODE, load(free=10))
    assert broker.told[-1] == SessionPlaced(TRACE, "node-a", 1.5)
    assert (broker.core.counters.busy, broker.core.counters.errors) == (1, 0)
