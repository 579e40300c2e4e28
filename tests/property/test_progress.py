"""A client's log and a trunk's positions against a lossy network, whatever the order of faults.

Given a client that generates, retries, rolls back and regenerates, and a network that loses,
repeats and delays, then what the trunk holds is always what the client sent, byte for byte.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fedsea_mq.errors import PositionConflict, PositionGap
from fedsea_mq.protocol.messages import Extend
from fedsea_mq.protocol.positions import SentLog, TrunkPositions, Verdict

MAX_POSITIONS, MAX_FRAME = 24, 6
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=MAX_FRAME)
Sent = tuple[Extend, tuple[bytes, ...], int]


class Session(RuleBasedStateMachine):
    """`cache` is what the trunk's KV would hold: the bytes applied, a position each."""

    def __init__(self) -> None:
        super().__init__()
        self.log = SentLog((4,))
        self.trunk = TrunkPositions(MAX_POSITIONS, MAX_FRAME)
        self.cache: list[bytes] = []
        self.client_cached = 0
        self.history: list[Sent] = []
        self.in_flight: Sent | None = None
        self.draws = 0
        self.trunk_ahead = False

    def fresh(self, count: int) -> list[bytes]:
        """Payload that was never drawn before, as noise never is."""
        rows = range(self.draws, self.draws + count)
        self.draws += count
        return [b"".join(row.to_bytes(4, "little") for row in rows)]

    def deliver(self, sent: Sent) -> None:
        verdict, (body, payload, _) = self.trunk.receive(*sent), sent
        if verdict is Verdict.APPLY:
            self.in_flight = sent
            del self.cache[body.cached :]
        elif verdict is Verdict.REPLAY:
            # It went back and says the same again: the answer is there at once.
            assert self.trunk.reply == list(payload)
            self.client_cached = body.cached + body.count

    @precondition(lambda self: self.in_flight is None)
    @rule(tokens=TOKENS)
    def extend(self, tokens: list[int]) -> None:
        tokens = tokens[: MAX_POSITIONS - self.client_cached]
        if not tokens:
            return
        payload = self.log.record(self.client_cached, tokens, self.fresh(len(tokens)))
        body = Extend(
            cached=self.client_cached, count=len(tokens), returned=1, rewinds=self.trunk_ahead
        )
        self.history.append((body, tuple(payload), len(self.history)))
        self.deliver(self.history[-1])
        self.trunk_ahead = False

    @precondition(lambda self: self.in_flight is not None)
    @rule()
    def the_step_is_computed(self) -> None:
        assert self.in_flight is not None
        body, (payload,), _ = self.in_flight
        self.trunk.applied([payload])
        self.cache += [payload[4 * i : 4 * i + 4] for i in range(body.count)]
        self.client_cached, self.in_flight = body.cached + body.count, None

    @precondition(lambda self: self.in_flight is not None)
    @rule()
    def the_step_fails_and_is_sent_again(self) -> None:
        assert self.in_flight is not None
        self.trunk.failed()
        self.deliver(self.in_flight)
        assert self.trunk.in_flight

    @precondition(lambda self: self.history)
    @rule(data=st.data())
    def the_network_repeats_an_old_frame(self, data: st.DataObject) -> None:
        old = data.draw(st.sampled_from(self.history))
        before = self.trunk.cached
        try:
            verdict = self.trunk.receive(*old)
        except (PositionConflict, PositionGap):
            verdict = None
        if verdict is Verdict.REPLAY:
            assert self.trunk.reply == list(old[1])
        if verdict is Verdict.IN_FLIGHT:
            assert old == self.in_flight
        assert verdict is not Verdict.APPLY
        assert self.trunk.cached == before

    @precondition(lambda self: self.in_flight is None)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        cached = data.draw(st.integers(0, self.client_cached))
        self.trunk_ahead = self.trunk_ahead or cached < self.client_cached
        self.client_cached = cached

    @precondition(lambda self: self.in_flight is None)
    @rule()
    def the_node_dies_and_its_session_is_replayed(self) -> None:
        self.trunk = TrunkPositions(MAX_POSITIONS, MAX_FRAME)
        self.cache = []
        self.history, self.trunk_ahead = [], False  # a new session: what is old is not of it
        for start in range(0, self.client_cached, MAX_FRAME):
            count = min(MAX_FRAME, self.client_cached - start)
            (payload,) = self.log.payload(start, count)
            body = Extend(cached=start, count=count, returned=0)
            assert self.trunk.receive(body, [payload], -1) is Verdict.APPLY
            self.trunk.applied([])
            self.cache += [payload[4 * i : 4 * i + 4] for i in range(count)]

    @invariant()
    def the_trunk_holds_what_the_client_sent(self) -> None:
        assert self.trunk.cached == len(self.cache) >= self.client_cached
        assert self.trunk_ahead or len(self.cache) == self.client_cached
        kept = self.cache[: self.client_cached]
        assert b"".join(kept) == self.log.payload(0, self.client_cached)[0]

    @invariant()
    def one_row_of_bytes_a_position_and_no_row_twice(self) -> None:
        (rows,) = self.log.payload(0, len(self.log.tokens))
        assert len(rows) == 4 * len(self.log.tokens)
        each = [rows[i : i + 4] for i in range(0, len(rows), 4)]
        assert len(set(each)) == len(each)


Session.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, database=None
)
TestSession = Session.TestCase
