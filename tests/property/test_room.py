"""What the broker takes for free on a node, while opens, ends and heartbeats cross on the way."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from fedsea_mq.errors import Busy
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Load
from fedsea_mq.serving.trunk_sessions import Release, Reply, TrunkSessions
from tests.unit.broker.placing import Placing, offer, read
from tests.unit.serving.trunk import TERMS

NODE, CLIENT = b"node-a", b"anna"


class OneNode(RuleBasedStateMachine):
    """A broker's core and a trunk's sessions, between which frames wait until they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.placing = Placing()
        self.trunk = TrunkSessions(TERMS)
        self.clock = 0.0
        self.numbers = 0
        self.open: list[bytes] = []
        self.to_node: deque[Frame] = deque()
        self.to_broker: deque[Frame] = deque()
        self.placing.register(NODE, replace(offer("node-a"), load=self.load()))

    def load(self) -> Load:
        return Load(
            kv_positions_free=self.trunk.kv_free,
            kv_positions_total=TERMS.kv_positions,
            sessions=len(self.trunk),
            sessions_free=self.trunk.slots_free,
        )

    def opens(self, positions: int) -> bool:
        """Whether the broker sends a new session to the node."""
        self.numbers += 1
        session = self.numbers.to_bytes(16, "big")
        sent = self.placing.open(CLIENT, session, positions)
        placed = sent.peer == NODE
        if placed:
            self.open.append(session)
            self.to_node.append(read(sent))
        else:
            assert isinstance(read(sent).refusal(), Busy)
        return placed

    @rule(positions=st.integers(1, 60))
    def a_client_opens(self, positions: int) -> None:
        self.opens(positions)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 9))
    def a_client_closes(self, which: int) -> None:
        session = self.open.pop(which % len(self.open))
        self.to_node += [read(sent) for sent in self.placing.close(CLIENT, session)]

    @precondition(lambda self: self.to_node)
    @rule()
    def the_node_reads(self) -> None:
        for action in self.trunk.receive(self.to_node.popleft(), self.clock):
            if isinstance(action, Reply):
                reply = Frame.read(list(action.parts))
                # What the broker took for free was free.
                assert reply.refusal() is None
                self.to_broker.append(reply)
            else:
                assert isinstance(action, Release)

    @rule()
    def the_node_tells_its_load(self) -> None:
        self.to_broker.append(Frame.build(Kind.HEARTBEAT, self.load()))

    @rule()
    def leases_run_out(self) -> None:
        self.clock += TERMS.lease_s
        for action in self.trunk.expire(self.clock):
            if isinstance(action, Reply):
                self.to_broker.append(Frame.read(list(action.parts)))

    @precondition(lambda self: self.to_broker)
    @rule()
    def the_broker_reads(self) -> None:
        frame = self.to_broker.popleft()
        for sent in self.placing.node_says(NODE, frame):
            if sent.peer == NODE and frame.envelope.kind is not Kind.HEARTBEAT:
                self.to_node.append(read(sent))
            elif frame.envelope.kind is Kind.CLOSE:
                self.open.remove(frame.envelope.session)

    @rule()
    def all_is_read(self) -> None:
        """Then, with one heartbeat, the broker knows exactly what is free."""
        while self.to_node or self.to_broker:
            while self.to_node:
                self.the_node_reads()
            while self.to_broker:
                self.the_broker_reads()
        self.the_node_tells_its_load()
        self.the_broker_reads()
        positions = min(self.trunk.kv_free, TERMS.max_session_positions)
        assert self.opens(max(1, positions)) == bool(positions and self.trunk.slots_free)


OneNode.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestRoom = OneNode.TestCase
