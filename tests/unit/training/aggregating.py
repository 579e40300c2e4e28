"""An aggregator's core with its tensors, a scripted trunk, and members that are frames."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedsea_mq.errors import FedSeaError, UpdateRefused
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Nothing
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.protocol.training_messages import (
    Ask,
    BeginRound,
    Duty,
    EndRound,
    Enlist,
    Fate,
    Secure,
    Task,
    Update,
    Updated,
)
from fedsea_mq.training.adapter_layout import AdapterLayout
from fedsea_mq.training.aggregation.actions import (
    Action,
    AddMasked,
    AddUpdate,
    Average,
    Averaged,
    BeginRoundAtTrunk,
    Checked,
    CheckUpdate,
    EndRoundAtTrunk,
    Reply,
    Report,
    Save,
)
from fedsea_mq.training.aggregation.core import Aggregation
from fedsea_mq.training.aggregation.members import RunTerms
from fedsea_mq.training.aggregation.reports import RoundBegun, RunEvent
from fedsea_mq.training.aggregation.secure_stages import SecureRules
from fedsea_mq.training.round_plan import RoundPlan
from fedsea_mq.training.rounds import Progress, Rounds
from fedsea_mq.training.server_optimizers import FedAvg
from fedsea_mq.training.shared_adapters import Shared, SharedAdapters
from tests.unit.training.adapters import SHAPES, adapters

LAYOUT = AdapterLayout.of(SHAPES)
DIGEST, OTHER = "ab" * 32, "cd" * 32
TERMS = RunTerms("aggregator-1", "silos", DIGEST, DIGEST, lease_s=30.0)
MAX_NORM = 4.0


def plan(**fields: Any) -> RoundPlan:
    given = {"rounds": 2, "local_steps": 5, "seed": 1, "min_clients": 2, "min_updates": 2}
    return RoundPlan(**{**given, "training_s": 600.0, "aggregation_s": 60.0, **fields})


def enlist(member: str | None, **fields: Any) -> Enlist:
    said = {"role": Role.AGGREGATOR, "run": "silos", "fingerprint": DIGEST, "agreed": DIGEST}
    return Enlist(**{**said, "dtype": WireDtype.FP32, "member": member, **fields})


def session_id(member: str, life: int = 0) -> bytes:
    return f"{member}/{life}".encode().ljust(16, b".")


def update_vector(member: str, attempt: bytes, scale: float = 0.05) -> np.ndarray:
    """What a member would send in an attempt: other numbers in each."""
    drawn = np.random.default_rng([*attempt, *member.encode()])
    return (scale * drawn.standard_normal(LAYOUT.elements)).astype(np.float32)


def weight_of(member: str) -> int:
    return 1 + sum(member.encode()) % 50


@dataclass
class Aggregating:
    """Does what the core wants: at once, or when `work` is called if it is `patient`."""

    plan: RoundPlan = field(default_factory=plan)
    secure: SecureRules | None = None
    patient: bool = False
    progress: Progress | None = None
    now: float = 0.0

    def __post_init__(self) -> None:
        self.entropy: Callable[[int], bytes] = random.Random(1).randbytes
        rounds = Rounds(self.plan, self.progress)
        self.core = Aggregation(TERMS, rounds, LAYOUT.elements, self.secure, self.entropy)
        self.shared = SharedAdapters(LAYOUT, FedAvg(), MAX_NORM, Shared(adapters(0), {}))
        self.lives: dict[str, int] = {}
        self.replies: dict[tuple[bytes, int], Frame] = {}
        self.unasked: list[Frame] = []
        self.events: list[RunEvent] = []
        self.states: list[int] = []
        self.trunk: BeginRound | EndRound | None = None
        self.told_trunk: list[BeginRound | EndRound] = []
        # The ids of the attempts that have begun, by round and number.
        self.attempts: dict[tuple[int, int], bytes] = {}
        self.pending: deque[Callable[[], None]] = deque()
        self._seq = 0
        self.do(self.core.begin(self.shared.vector, self.shared.now.attempt))

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Reply(parts):
                    frame = Frame.read(parts)
                    key = frame.envelope.session, frame.envelope.seq
                    if frame.envelope.kind is Kind.CLOSE:
                        self.unasked.append(frame)
                    else:
                        self.replies[key] = frame
                case Report(event):
                    self.events.append(event)
                case BeginRoundAtTrunk(body) | EndRoundAtTrunk(body):
                    self.trunk = body
                    self.told_trunk.append(body)
                case _:
                    self.pending.append(lambda action=action: self._work(action))
        if not self.patient:
            while self.work() or self.trunk_answers():
                pass

    def work(self) -> bool:
        """One piece of work of the compute thread, in order; whether there was any."""
        if self.pending:
            self.pending.popleft()()
            return True
        return False

    def _work(self, action: Action) -> None:
        core, shared = self.core, self.shared
        match action:
            case CheckUpdate():
                outcome: Checked | UpdateRefused
                try:
                    clipped = shared.clipped(action.payload)
                    outcome = Checked(clipped, clipped.norm, clipped.clipped)
                except UpdateRefused as error:
                    outcome = error
                self.do(core.checked(action, outcome, self.now))
            case AddUpdate(attempt, update, weight):
                shared.add(attempt, update, weight)
            case AddMasked():
                refused: FedSeaError | None = None
                try:
                    action.server.receive(action.number, action.message, action.vector)
                except FedSeaError as error:
                    refused = error
                self.do(core.masked(action, refused, self.now))
            case Average(attempt, None):
                result = Averaged(shared.average(attempt))
                self.do(core.averaged(attempt, result, self.now))
            case Average(attempt, server):
                assert server is not None
                averaged: Averaged | FedSeaError
                try:
                    mean = server.mean()
                    averaged = Averaged(shared.average_of(attempt, mean), mean.survivors)
                except FedSeaError as error:
                    averaged = error
                self.do(core.averaged(attempt, averaged, self.now))
            case Save(attempt, progress, _):
                if attempt is not None:
                    shared.take(attempt)
                self.states.append(progress.done)
                self.do(core.saved(self.now))

    def trunk_answers(self) -> bool:
        """The trunk does what it was told last; whether there was anything."""
        body, self.trunk = self.trunk, None
        if isinstance(body, BeginRound):
            before = len(self.of(RoundBegun))
            self.do(self.core.trunk_began(body.attempt, self.now))
            for event in self.of(RoundBegun)[before : before + 1]:
                self.attempts[event.round, event.attempt] = body.attempt
        elif isinstance(body, EndRound):
            self.do(self.core.trunk_ended(body.attempt, self.now))
        return body is not None

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.do(self.core.tick(self.now))

    def say(
        self, session: bytes, kind: Kind, body: Any, payload: list[bytes] | None = None
    ) -> Frame | None:
        """Send a frame; its answer, if it has come already."""
        self._seq += 1
        self.send(Frame.build(kind, body, session=session, seq=self._seq, payload=payload or []))
        return self.replies.get((session, self._seq))

    def send(self, frame: Frame) -> None:
        self.do(self.core.receive(frame, self.now))

    def session(self, member: str) -> bytes:
        return session_id(member, self.lives.get(member, 0))

    def enlist(self, member: str, **fields: Any) -> Frame:
        reply = self.say(self.session(member), Kind.ENLIST, enlist(member, **fields))
        assert reply is not None
        return reply

    def come_back(self, member: str) -> None:
        """The member's process starts anew."""
        self.lives[member] = self.lives.get(member, 0) + 1
        self.enlist(member)

    def leave(self, member: str) -> None:
        self.say(self.session(member), Kind.CLOSE, Nothing())

    def ask(self, member: str, failed: bytes | None = None) -> tuple[Task, list[bytes]] | None:
        """The task that a member gets, if it gets one at once."""
        body = Ask(samples=weight_of(member), failed=failed)
        reply = self.say(self.session(member), Kind.ASK, body)
        if reply is None or reply.envelope.kind is not Kind.TASK:
            return None
        return reply.body(Task), list(reply.payload)

    def join(self, *members: str) -> None:
        for member in members:
            self.enlist(member)
            self.ask(member)

    def task(self, member: str) -> Task:
        """The member asks, and has something to do at once."""
        asked = self.ask(member)
        assert asked is not None
        return asked[0]

    def attempt(self, member: str) -> bytes:
        """The attempt that a member is to train in."""
        task = self.task(member)
        assert task.duty is Duty.TRAIN
        return task.attempt

    def update(
        self, member: str, attempt: bytes, vector: np.ndarray | None = None, loss: float = 1.0
    ) -> Frame | None:
        if self.secure is not None:
            body, payload = Update(attempt, 0, loss), []
        else:
            given = update_vector(member, attempt) if vector is None else vector
            body, payload = Update(attempt, weight_of(member), loss), [given.tobytes()]
        return self.say(self.session(member), Kind.UPDATE, body, payload)

    def fate(self, member: str, attempt: bytes, **fields: Any) -> Fate:
        reply = self.update(member, attempt, **fields)
        assert reply is not None
        return reply.body(Updated).fate

    def secure_says(
        self, member: str, attempt: bytes, record: bytes, vector: bytes = b""
    ) -> Frame | None:
        payload = [record, vector] if vector else [record]
        return self.say(self.session(member), Kind.SECURE, Secure(attempt), payload)

    def of(self, kind: type) -> list[Any]:
        """The events of a kind, in their order."""
        return [event for event in self.events if isinstance(event, kind)]
