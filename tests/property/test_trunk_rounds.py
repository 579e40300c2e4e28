"""The trunk's rules under any order of frames: copies, members that vanish, work that takes time.

A model trunk computes nothing: it checks that what it is asked to do is what the strategy says.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Nothing
from fedsea_mq.protocol.payload import PayloadSpec, WireDtype
from fedsea_mq.protocol.training_messages import (
    Backward,
    BeginRound,
    EndRound,
    Enlist,
    Forward,
    Step,
)
from fedsea_mq.run_settings import Strategy
from fedsea_mq.serving.trunk_sessions import Reply
from fedsea_mq.training.gathering import SHARED
from fedsea_mq.training.trunk_members import TrainingTerms
from fedsea_mq.training.trunk_rounds import Action, TrunkRounds
from fedsea_mq.training.trunk_work import (
    Answer,
    DropPasses,
    Outcome,
    Restore,
    RunBackward,
    RunForward,
    Save,
    TakeStep,
    Work,
)

DIGEST = "ab" * 32
NAMES = ["ann", "bob", "cy"]
STEPS, MICROS = 3, 2
ATTEMPT = b"attempt".ljust(16)
SPEC = PayloadSpec(WireDtype.FP16, 2)


def terms(strategy: Strategy) -> TrainingTerms:
    return TrainingTerms("t", "silos", DIGEST, DIGEST, 2, strategy, 600, 8, 1000.0, 5.0)


@dataclass
class Trunk:
    """Does the work when the test says so; checks that passes and steps are of the strategy."""

    strategy: Strategy
    waiting: dict[int, RunForward] = field(default_factory=dict)
    batches: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    order: list[str] = field(default_factory=list)
    saved: Save | None = None

    def do(self, work: Work, gone: set[str]) -> Outcome:
        match work:
            case RunForward():
                members = [piece.member for piece in work.pieces]
                assert len(set(members)) == len(members)
                if self.strategy is Strategy.SEQUENTIAL:
                    assert len(members) == 1
                if self.strategy is Strategy.CLIENT_BATCH:
                    assert set(NAMES) - gone <= set(members)
                    assert len({piece.micro for piece in work.pieces}) == 1
                self.waiting[work.number] = work
                return {member: Answer([bytes(SPEC.bytes_per_position * 4)]) for member in members}
            case RunBackward():
                forward = self.waiting.pop(work.number)
                assert work.pieces == forward.pieces
                assert {p.member for p in work.pieces} - gone <= work.gradients.keys()
                for piece in work.pieces:
                    if piece.member in work.gradients:
                        step = self.steps[piece.adapter]
                        self.batches[piece.member, step, piece.micro] += 1
                return {
                    member: Answer([bytes(SPEC.bytes_per_position * 4)], 0, 1.0)
                    for member in work.gradients
                }
            case TakeStep():
                own = work.adapter != SHARED
                assert own == (self.strategy is Strategy.HIERARCHICAL)
                # No pass waits whose adapter changes.
                for forward in self.waiting.values():
                    alive = [p for p in forward.pieces if p.member not in gone]
                    assert work.adapter not in {p.adapter for p in alive}
                self.steps[work.adapter] += 1
                self.order += work.squared_norms
            case DropPasses():
                for number in work.numbers:
                    del self.waiting[number]
            case Save():
                self.saved = work
        return {}


@dataclass
class Client:
    """What one member says next, given what it was answered."""

    name: str
    step: int = 0
    answered: Counter[Kind] = field(default_factory=Counter)
    sent: Counter[Kind] = field(default_factory=Counter)

    def frames(self) -> list[tuple[Kind, object, int]]:
        """What it may send now: all batches of a step at once, gradients as outputs come."""
        if self.step == STEPS:
            return []
        said: list[tuple[Kind, object, int]] = []
        if self.sent[Kind.FORWARD] < MICROS:
            micro = self.sent[Kind.FORWARD]
            said.append((Kind.FORWARD, Forward(ATTEMPT, self.step, micro, True, [1, 3]), 4))
        if self.sent[Kind.BACKWARD] < self.answered[Kind.OUTPUTS]:
            micro = self.sent[Kind.BACKWARD]
            said.append((Kind.BACKWARD, Backward(ATTEMPT, self.step, micro, 0), 4))
        if self.answered[Kind.GRADIENT] == MICROS:
            said.append((Kind.STEP, Step(ATTEMPT, self.step, 1.0), 0))
        return said

    def told(self, kind: Kind) -> None:
        assert kind in (Kind.OUTPUTS, Kind.GRADIENT, Kind.STEPPED), kind
        self.answered[kind] += 1


class Network:
    """Parties, rules and trunk, driven by a seed."""

    def __init__(self, strategy: Strategy, seed: int) -> None:
        self.rng = random.Random(seed)
        self.core = TrunkRounds(terms(strategy))
        self.trunk = Trunk(strategy)
        self.clients = {name: Client(name) for name in NAMES}
        self.now, self.seq = 0.0, 0
        self.work: list[Work] = []
        self.old: list[tuple[bytes, Frame]] = []
        self.gone: set[str] = set()
        self.closed: set[str] = set()
        self.seen: set[tuple[bytes, int]] = set()
        self.aggregator: list[Kind] = []
        for member in (None, *NAMES):
            body = Enlist(Role.TRUNK, "silos", DIGEST, DIGEST, WireDtype.FP16, member)
            self.send(member, Kind.ENLIST, body)

    def send(self, member: str | None, kind: Kind, body: object, rows: int = 0) -> None:
        self.seq += 1
        payload = [bytes(size) for size in SPEC.part_sizes(rows)]
        session = (member or "aggregator").encode().ljust(16)
        frame = Frame.build(kind, body, session=session, seq=self.seq, payload=payload)
        self.old.append((session, frame))
        self.act(self.core.receive(frame, self.now))

    def act(self, actions: list[Action]) -> None:
        for action in actions:
            if not isinstance(action, Reply):
                self.work.append(action)
                assert len(self.work) == 1  # one piece of work at a time
                continue
            reply = Frame.read(action.parts)
            key = (reply.envelope.session, reply.envelope.seq)
            name = reply.envelope.session.strip().decode()
            if reply.envelope.kind in (Kind.ACCEPT, Kind.CLOSE) or key in self.seen:
                continue  # a copy's answer is the same answer
            self.seen.add(key)
            if name == "aggregator":
                self.aggregator.append(reply.envelope.kind)
            elif name not in self.gone:
                self.clients[name].told(reply.envelope.kind)

    def compute(self) -> None:
        if self.work:
            work = self.work.pop()
            self.act(self.core.done(work, self.trunk.do(work, self.gone), self.now))

    def a_client_speaks(self) -> None:
        ready = [c for n, c in self.clients.items() if n not in self.gone and c.frames()]
        if not ready:
            return
        client = self.rng.choice(ready)
        kind, body, rows = self.rng.choice(client.frames())
        client.sent[kind] += 1
        if kind is Kind.STEP:
            client.step += 1
            client.sent.clear()
            client.answered.clear()
        self.send(client.name, kind, body, rows)

    def a_copy_comes(self) -> None:
        _, frame = self.rng.choice(self.old)
        name = frame.envelope.session.strip().decode()
        if name not in self.gone and frame.envelope.kind is not Kind.CLOSE:
            before = [Counter(c.answered) for c in self.clients.values()]
            self.act(self.core.receive(frame, self.now))
            assert before == [c.answered for c in self.clients.values()]

    def vanish(self, name: str, *, in_silence: bool) -> None:
        self.gone.add(name)
        if not in_silence:
            self.closed.add(name)
            self.send(name, Kind.CLOSE, Nothing())

    def run(self, vanishing: dict[int, tuple[str, bool]]) -> None:
        self.send(None, Kind.BEGIN_ROUND, BeginRound(0, ATTEMPT, STEPS, NAMES))
        assert isinstance(self.work[0], Restore)
        self.compute()
        for turn in range(2000):
            if turn in vanishing:
                name, in_silence = vanishing[turn]
                self.vanish(name, in_silence=in_silence)
            choices = [self.a_client_speaks, self.a_client_speaks, self.compute, self.a_copy_comes]
            self.rng.choice(choices)()
            # Time goes by for who is silent alone: others answer within their patience.
            if turn % 50 == 49 and self.gone:
                self.now += 6.0
                self.settle()
            if self.finished and turn > max(vanishing, default=0):
                break
        assert self.finished, [vars(c) for c in self.clients.values()]

    def settle(self) -> None:
        """All who live speak and are answered before patience is at its end."""
        while self.work or any(c.frames() for n, c in self.clients.items() if n not in self.gone):
            self.a_client_speaks()
            self.compute()
        self.act(self.core.expire(self.now))

    @property
    def finished(self) -> bool:
        alive = [c for n, c in self.clients.items() if n not in self.gone]
        return not self.work and all(c.step == STEPS and c.answered[Kind.STEPPED] for c in alive)


@pytest.mark.parametrize("strategy", list(Strategy), ids=str)
@settings(max_examples=60, deadline=None, database=None)
@given(seed=st.integers(0, 2**32))
def test_every_batch_is_learned_once_whatever_the_order_and_the_copies(
    strategy: Strategy, seed: int
) -> None:
    network = Network(strategy, seed)
    network.run({})
    trunk = network.trunk
    assert not trunk.waiting
    taken = {
        Strategy.HIERARCHICAL: dict.fromkeys(NAMES, STEPS),
        Strategy.CLIENT_BATCH: {SHARED: STEPS},
        Strategy.SEQUENTIAL: {SHARED: STEPS * len(NAMES)},
    }[strategy]
    assert trunk.steps == taken
    assert len(trunk.batches) == len(NAMES) * STEPS * MICROS
    assert set(trunk.batches.values()) == {1}
    if strategy is Strategy.SEQUENTIAL:
        assert trunk.order == [name for name in NAMES for _ in range(STEPS)]
    network.send(None, Kind.END_ROUND, EndRound(0, ATTEMPT, NAMES))
    network.compute()
    assert network.aggregator == [Kind.ROUND_STATE, Kind.ROUND_STATE]
    assert trunk.saved is not None
    apart = strategy is Strategy.HIERARCHICAL
    expected = dict.fromkeys(NAMES, 2.0 * STEPS * MICROS) if apart else {}
    assert (trunk.saved.round, trunk.saved.weights) == (1, expected)


@pytest.mark.parametrize("strategy", [Strategy.CLIENT_BATCH, Strategy.HIERARCHICAL], ids=str)
@settings(max_examples=60, deadline=None, database=None)
@given(
    seed=st.integers(0, 2**32),
    lost=st.dictionaries(
        st.integers(0, 150), st.tuples(st.sampled_from(NAMES[:2]), st.booleans()), max_size=2
    ),
)
def test_whoever_vanishes_with_or_without_a_word_the_others_finish(
    strategy: Strategy, seed: int, lost: dict[int, tuple[str, bool]]
) -> None:
    network = Network(strategy, seed)
    network.run(lost)
    # No pass is held for those alone who said that they went.
    held = [{p.member for p in one.pieces} for one in network.trunk.waiting.values()]
    assert all(members - network.closed for members in held)
    # Nothing of those who stayed was left out, and nothing learned twice.
    stayed = [name for name in NAMES if name not in network.gone]
    for name in stayed:
        assert sum(n == name for n, *_ in network.trunk.batches) == STEPS * MICROS
    assert set(network.trunk.batches.values()) == {1}


@settings(max_examples=60, deadline=None, database=None)
@given(seed=st.integers(0, 2**32), turn=st.integers(0, 150), name=st.sampled_from(NAMES[:2]))
def test_a_turn_ends_with_its_members_session(seed: int, turn: int, name: str) -> None:
    network = Network(Strategy.SEQUENTIAL, seed)
    network.run({turn: (name, False)})
    order = network.trunk.order
    assert order == sorted(order)
    assert order.count("cy") == STEPS
