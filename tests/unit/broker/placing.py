"""A broker's core driven by nodes and clients, without sockets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from broker.core import BrokerCore
from broker.messages import Send, Side
from broker.state import BrokerTerms
from fedsea_mq.errors import FedSeaError
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import (
    Accept,
    Extend,
    Load,
    Nothing,
    Open,
    Register,
    Result,
    StatusReport,
)
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.protocol.training_messages import Enlist

LLAMA, QWEN = "ab" * 32, "cd" * 32
TERMS = BrokerTerms(heartbeat_ms=1000, timeout_ms=5000)
OLD = 100.0  # long after the start: every node has had time to register
S1, S2, S3 = b"1" * 16, b"2" * 16, b"3" * 16
EXTEND = Extend(cached=0, count=1, returned=1)


def load(free: int = 100, total: int = 100, slots: int = 1000, sessions: int = 1000) -> Load:
    return Load(
        kv_positions_free=free,
        kv_positions_total=total,
        sessions=sessions,
        sessions_free=slots,
    )


def offer(name: str, free: int = 100, total: int = 100, **other: Any) -> Register:
    said = {"fingerprint": LLAMA, "head_blocks": 1, "tail_blocks": 1, "hidden": 8, "sessions": []}
    return Register(name=name, load=load(free, total), **{**said, **other})


def accept(session: bytes, seq: int = 0) -> Frame:
    body = Accept(node="n", max_frame_positions=8, lease_ms=1000)
    return Frame.build(Kind.ACCEPT, body, session=session, seq=seq)


def result(session: bytes) -> Frame:
    return Frame.build(Kind.RESULT, Result(cached=1, returned=0), session=session)


@dataclass
class Placing:
    """A core and a clock that stands where the test puts it."""

    core: BrokerCore = field(default_factory=lambda: BrokerCore(TERMS, started_at=0.0))
    now: float = OLD
    ticked_at: float = OLD

    def __post_init__(self) -> None:
        self.core.tick(self.ticked_at)

    def node_says(self, peer: bytes, frame: Frame) -> list[Send]:
        return self.core.from_node(peer, frame.parts(), self.now)

    def client_says(self, peer: bytes, frame: Frame) -> list[Send]:
        return self.core.from_client(peer, frame.parts(), self.now)

    def register(self, peer: bytes, body: Register | None = None) -> list[Send]:
        body = body or offer(peer.decode())
        return self.node_says(peer, Frame.build(Kind.REGISTER, body))

    def heartbeat(self, peer: bytes, body: Load | None = None) -> list[Send]:
        return self.node_says(peer, Frame.build(Kind.HEARTBEAT, body or load()))

    def open(
        self, client: bytes, session: bytes, positions: int = 10, fingerprint: str = LLAMA
    ) -> Send:
        (sent,) = self.client_says(client, self.opening(session, positions, fingerprint))
        return sent

    @staticmethod
    def opening(session: bytes, positions: int = 10, fingerprint: str = LLAMA) -> Frame:
        body = Open(fingerprint=fingerprint, max_positions=positions, dtype=WireDtype.FP16)
        return Frame.build(Kind.OPEN, body, session=session, seq=5)

    def enlist(self, client: bytes, session: bytes, role: Role, run: str = "silos") -> Send:
        body = Enlist(role, run, LLAMA, "00" * 32, WireDtype.FP32, "silo-1", client=b"claimed")
        (sent,) = self.client_says(client, Frame.build(Kind.ENLIST, body, session=session, seq=5))
        return sent

    def opened(self, client: bytes, session: bytes, positions: int = 10) -> bytes:
        """Open and accept a session; the node that holds it."""
        sent = self.open(client, session, positions)
        assert sent.side is Side.NODES
        self.node_says(sent.peer, accept(session))
        return sent.peer

    def extend(self, client: bytes, session: bytes) -> Send:
        frame = Frame.build(Kind.EXTEND, EXTEND, session=session, seq=6, payload=[b"states"])
        (sent,) = self.client_says(client, frame)
        return sent

    def close(self, client: bytes, session: bytes) -> list[Send]:
        return self.client_says(client, Frame.build(Kind.CLOSE, Nothing(), session=session))

    def status(self) -> StatusReport:
        self.now += 0.1  # a report younger than that is given again
        (sent,) = self.client_says(b"watcher", Frame.build(Kind.STATUS, Nothing(), seq=3))
        reply = read(sent)
        assert (sent.side, sent.peer) == (Side.CLIENTS, b"watcher")
        assert (reply.envelope.kind, reply.envelope.seq) == (Kind.STATUS_REPORT, 3)
        return reply.body(StatusReport)

    @property
    def sessions(self) -> int:
        return self.status().sessions

    def tick(self) -> list[Send]:
        """What the ticks of a steady clock up to now say, but for the heartbeats to clients."""
        sent = []
        while self.ticked_at < self.now:
            self.ticked_at = min(self.now, self.ticked_at + TERMS.heartbeat_ms / 2000)
            sent += self.core.tick(self.ticked_at)
        return [send for send in sent if read(send).envelope.kind is not Kind.HEARTBEAT]

    def beats(self) -> list[Send]:
        """The heartbeats to clients when they are due next; node A is heard of meanwhile."""
        self.now += TERMS.timeout_ms / 2000
        self.heartbeat(b"node-a")
        return self.core.tick(self.now)


def read(sent: Send) -> Frame:
    return Frame.read(list(sent.parts))


def refused(sent: Send, error: type[FedSeaError]) -> FedSeaError:
    told = read(sent).refusal()
    assert type(told) is error
    return told


def closes(sent: Send, peer: bytes, session: bytes) -> bool:
    """Whether a node is told to close a session."""
    envelope = read(sent).envelope
    where = (sent.side, sent.peer) == (Side.NODES, peer)
    return where and (envelope.kind, envelope.session) == (Kind.CLOSE, session)
