"""Hostile frames at a run's trunk and at its aggregator: refused by type, or taken as any other."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedsea_mq.errors import FedSeaError
from fedsea_mq.protocol import training_messages as t
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.protocol.messages import Nothing
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.run_settings import Strategy
from fedsea_mq.serving.trunk_sessions import Reply
from fedsea_mq.training.trunk_rounds import Action, TrunkRounds
from fedsea_mq.training.trunk_work import Answer, Outcome, RunBackward, RunForward, Work
from tests.property import test_trunk_rounds as trunk
from tests.property.hostile import Corpus, is_refusal, over_seeds
from tests.unit.protocol.bodies import BODIES
from tests.unit.training import aggregating as aggregator

ANN, BOB, AGGREGATOR = (name.ljust(16) for name in (b"ann", b"bob", b"aggregator"))
ROWS = 4


def zeros(rows: int) -> list[bytes]:
    return [bytes(size) for size in trunk.SPEC.part_sizes(rows)]


STATES = zeros(ROWS)


def enlist(role: Role, member: str | None) -> t.Enlist:
    return t.Enlist(role, "silos", trunk.DIGEST, trunk.DIGEST, WireDtype.FP16, member)


def every_frame(sessions: list[bytes]) -> list[Parts]:
    return [
        Frame.build(kind, body, session=session, payload=STATES).parts()
        for kind in Kind
        for body in BODIES
        for session in sessions
    ]


def trunks_corpus() -> Corpus:
    attempt = trunk.ATTEMPT
    of_members = [
        (Kind.FORWARD, t.Forward(attempt, step, micro, True, [1, 3]), STATES)
        for step in range(2)
        for micro in range(2)
    ] + [
        (Kind.BACKWARD, t.Backward(attempt, step, micro, 0), STATES)
        for step in range(2)
        for micro in range(2)
    ]
    said = [
        *((session, *one) for one in of_members for session in (ANN, BOB)),
        *((session, Kind.STEP, t.Step(attempt, 0, 1.0), []) for session in (ANN, BOB)),
        (ANN, Kind.RENEW, Nothing(), []),
        (ANN, Kind.ENLIST, enlist(Role.TRUNK, "ann"), []),
        (AGGREGATOR, Kind.BEGIN_ROUND, t.BeginRound(0, attempt, 3, ["ann", "bob"]), []),
        (AGGREGATOR, Kind.END_ROUND, t.EndRound(0, attempt, ["ann", "bob"]), []),
    ]
    working = [
        Frame.build(kind, body, session=session, seq=seq, payload=payload).parts()
        for seq, (session, kind, body, payload) in enumerate(said)
    ]
    return Corpus(working, working + every_frame([ANN, AGGREGATOR]))


class Trunk:
    """The rules, in a round, whose work is done at once."""

    def __init__(self, strategy: Strategy) -> None:
        self.rules = TrunkRounds(trunk.terms(strategy))
        self.now = 0.0
        self.settle()

    def settle(self) -> None:
        """All parties are there, in the middle of a round."""
        for session, member in ((ANN, "ann"), (BOB, "bob"), (AGGREGATOR, None)):
            self.say(session, Kind.ENLIST, enlist(Role.TRUNK, member))
        began = t.BeginRound(0, trunk.ATTEMPT, 3, ["ann", "bob"])
        self.say(AGGREGATOR, Kind.BEGIN_ROUND, began)

    def say(self, session: bytes, kind: Kind, body: object) -> None:
        self.receive(Frame.build(kind, body, session=session, seq=1 << 20))

    def receive(self, frame: Frame) -> list[Reply]:
        self.now += 0.01
        return self.done(self.rules.receive(frame, self.now))

    def done(self, actions: list[Action]) -> list[Reply]:
        replies: list[Reply] = []
        while actions:
            action = actions.pop(0)
            if isinstance(action, Reply):
                replies.append(action)
            else:
                actions += self.rules.done(action, self.answer(action), self.now)
        return replies

    def answer(self, work: Work) -> Outcome:
        if isinstance(work, RunForward | RunBackward):
            assert all(sum(piece.lengths) == piece.positions for piece in work.pieces)
            spec = trunk.SPEC
            payloads = {
                p.member: [bytes(n) for n in spec.part_sizes(p.positions)] for p in work.pieces
            }
            return {member: Answer(payload, 0, 1.0) for member, payload in payloads.items()}
        return {}


@pytest.mark.parametrize("strategy", list(Strategy), ids=str)
def test_nothing_comes_out_of_a_runs_trunk_but_valid_replies(strategy: Strategy) -> None:
    def rules(_: int) -> Callable[[Parts], bool]:
        held = Trunk(strategy)
        thrown = 0

        def receive(parts: Parts) -> bool:
            nonlocal thrown
            thrown += 1
            if thrown % 100 == 0:
                held.settle()
            try:
                frame = Frame.read(parts)
            except FedSeaError:
                return False
            replies = held.receive(frame)
            assert len(held.rules.sessions) <= 8
            return any(not is_refusal(reply.parts) for reply in replies)

        return receive

    over_seeds(trunks_corpus(), rules)


def aggregators_corpus(attempt: bytes) -> Corpus:
    sessions = [aggregator.session_id(name) for name in ("ann", "bob")]
    vector = [aggregator.update_vector("ann", attempt).tobytes()]
    said = [
        (Kind.ENLIST, aggregator.enlist("ann"), []),
        (Kind.ASK, t.Ask(samples=3), []),
        (Kind.ASK, t.Ask(samples=3, failed=attempt), []),
        (Kind.UPDATE, t.Update(attempt, 3, 1.0), vector),
        (Kind.SECURE, t.Secure(attempt), [b"record"]),
        (Kind.RENEW, Nothing(), []),
    ]
    working = [
        Frame.build(kind, body, session=session, seq=seq, payload=payload).parts()
        for seq, (kind, body, payload) in enumerate(said)
        for session in sessions
    ]
    return Corpus(working, working + every_frame(sessions))


def test_nothing_comes_out_of_the_aggregator_but_valid_replies() -> None:
    def core(_: int) -> Callable[[Parts], bool]:
        held = aggregating()

        def receive(parts: Parts) -> bool:
            try:
                frame = Frame.read(parts)
            except FedSeaError:
                return False
            held.replies.clear()
            held.now += 0.001
            held.send(frame)
            return any(not is_refusal(reply.parts()) for reply in held.replies.values())

        return receive

    attempt = next(iter(aggregating().attempts.values()))
    over_seeds(aggregators_corpus(attempt), core)


def aggregating() -> aggregator.Aggregating:
    held = aggregator.Aggregating(aggregator.plan(rounds=1000, max_attempts=1000))
    held.join("ann", "bob")
    return held
