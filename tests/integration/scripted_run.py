"""A trunk and an aggregator that do what a test says, over real sockets, with real training inside.

They know nothing of strategies, deadlines or files: members train on trunks of their own, all take
part in every round, and a round begins again whenever somebody who owes an update comes anew.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from broker import Broker
from fedsea_mq.errors import (
    AttemptOver,
    Busy,
    FedSeaError,
    MemberReplaced,
    RunMismatch,
    SessionUnknown,
)
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.lora import NamedBlocks, PeftAdapter
from fedsea_mq.model.partition import Cut
from fedsea_mq.model.parts import load_trunk
from fedsea_mq.model.wire_gradients import decode_gradient, encode_gradient
from fedsea_mq.model.wire_states import decode_states, encode_states
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Accept, Body, Load, Nothing, Register
from fedsea_mq.protocol.payload import PayloadSpec
from fedsea_mq.protocol.training_messages import (
    Ask,
    Backward,
    Duty,
    Enlist,
    Fate,
    Forward,
    Gradient,
    Outputs,
    Secure,
    Secured,
    Step,
    Stepped,
    Task,
    Update,
    Updated,
)
from fedsea_mq.serving.background import Background
from fedsea_mq.settings import Settings
from fedsea_mq.training.adapter_layout import AdapterLayout
from fedsea_mq.training.averaging import Personal, WeightedMean
from fedsea_mq.training.batch import Batch
from fedsea_mq.training.blocks import TrainedBlocks
from fedsea_mq.training.graphs import Graphs
from fedsea_mq.training.load import load_trained_client
from fedsea_mq.training.optimizer import clip_factor
from fedsea_mq.training.secure_aggregation.messages import (
    Keys,
    MaskedUpdate,
    Reveal,
    Roster,
    Shares,
    Stage,
    Terms,
    decode_message,
    encode_message,
)
from fedsea_mq.training.secure_aggregation.server import SecureServer
from fedsea_mq.training.seeds import DropoutStream
from fedsea_mq.training.settings import TrainingSettings
from fedsea_mq.training.split_step import TailStep
from fedsea_mq.training.state import PartState, restore, state_of
from fedsea_mq.training.ticketed_pass import TicketedPass
from fedsea_mq.training.trained_adapter import TrainedAdapter
from fedsea_mq.transport.link import PeerLink
from nodes.membership import Membership

RUN = "run-1"
LEASE_MS = 600
_LOAD = Load(kv_positions_free=0, kv_positions_total=0, sessions=0, sessions_free=0)
_SAID_AT: dict[Stage, Any] = {
    Stage.KEYS: Keys,
    Stage.SHARES: Shares,
    Stage.MASKED: MaskedUpdate,
    Stage.UNMASK: Reveal,
}
Reply = tuple[Kind, Body, Sequence[bytes]]


class ScriptedNode:
    """Answers frames one by one.

    `faults` sees each reply: how many times is it sent? `deaf` sees each request: is it lost?
    """

    def __init__(self, settings: Settings, role: Role, max_positions: int = 4096) -> None:
        self.settings = settings
        self.faults: Callable[[Frame], int] = lambda _: 1
        self.deaf: Callable[[Frame], bool] = lambda _: False
        self.heard: list[Frame] = []
        self.members: dict[bytes, str] = {}
        self._max_positions = max_positions
        self._frames: asyncio.Queue[Frame] = asyncio.Queue()
        self._stack = AsyncExitStack()
        model = settings.model
        checkpoint = Checkpoint.open(model.path)
        self.cut = Cut(model.head_blocks, model.tail_blocks)
        self.fingerprint = checkpoint.fingerprint(self.cut)
        self.checkpoint = checkpoint
        self.role = role

    async def __aenter__(self) -> Self:
        self._link = PeerLink(self.settings.broker.nodes, self._receive, max_part_bytes=1 << 26)
        await self._stack.enter_async_context(self._link)
        background = await self._stack.enter_async_context(Background())
        self._membership = Membership(self._link.send, self._offer, self._load)
        self._stack.callback(self._membership.leave)
        background.start(self._membership.run(), f"{self.role} membership")
        background.start(self._work(), f"{self.role} work")
        await self._membership.registered.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _load(self) -> Load:
        return replace(_LOAD, sessions=len(self.members))

    def _offer(self) -> Register:
        return Register(
            name=f"scripted-{self.role}",
            fingerprint=self.fingerprint,
            head_blocks=self.cut.head_blocks,
            tail_blocks=self.cut.tail_blocks,
            hidden=self.checkpoint.hidden,
            load=self._load(),
            sessions=list(self.members),
            role=self.role,
            run=RUN,
        )

    def _receive(self, frame: Frame) -> None:
        if frame.envelope.session:
            self._frames.put_nowait(frame)
        else:
            self._membership.receive(frame)

    async def _work(self) -> None:
        while True:
            frame = await self._frames.get()
            if self.deaf(frame):
                continue
            self.heard.append(frame)
            if frame.envelope.kind is Kind.CLOSE:
                self.members.pop(frame.envelope.session, None)
                continue
            try:
                kind, body, payload = await self._answer(frame)
                reply = Frame.build(
                    kind,
                    body,
                    session=frame.envelope.session,
                    seq=frame.envelope.seq,
                    payload=payload,
                )
            except FedSeaError as error:
                reply = Frame.error(error, frame.envelope)
            for _ in range(self.faults(reply)):
                self._link.send(reply.parts())

    async def _answer(self, frame: Frame) -> Reply:
        session = frame.envelope.session
        if frame.envelope.kind is Kind.ENLIST:
            asked = frame.body(Enlist)
            if asked.agreed != self.settings.agreed:
                raise RunMismatch("other settings")
            assert asked.member is not None
            self.spec = PayloadSpec(asked.dtype, self.checkpoint.hidden)
            known = session in self.members
            self.members[session] = asked.member
            if not known:
                await self.enlisted(asked.member)
            return Kind.ACCEPT, Accept(f"scripted-{self.role}", self._max_positions, LEASE_MS), ()
        if session not in self.members:
            raise SessionUnknown("no such session")
        if frame.envelope.kind is Kind.RENEW:
            return Kind.RENEWED, Nothing(), ()
        return await self.answer(self.members[session], frame)

    async def enlisted(self, member: str) -> None:
        """A member has a new session."""

    async def answer(self, member: str, frame: Frame) -> Reply:
        """What is said to a member's frame."""
        raise NotImplementedError

    def forget_sessions(self) -> None:
        """As if started anew under the broker's eyes."""
        self.members.clear()

    def replace(self, member: str) -> None:
        """As if another process had enlisted under a member's name."""
        (session,) = (one for one, name in self.members.items() if name == member)
        del self.members[session]
        self._link.send(Frame.closing(MemberReplaced("one more"), session).parts())

    def kinds(self, kind: Kind) -> int:
        """Frames of a kind that came."""
        return sum(frame.envelope.kind is kind for frame in self.heard)


class NoDropout(DropoutStream):
    """Leaves the process's random numbers alone: the client draws them on another thread."""

    @contextmanager
    def next_pass(self) -> Iterator[None]:
        yield


class MemberTrunk:
    """The middle blocks with one member's adapter, without dropout."""

    def __init__(self, checkpoint: Checkpoint, cut: Cut, settings: TrainingSettings) -> None:
        settings = replace(settings, lora=replace(settings.lora, dropout=0.0))
        run = load_trunk(checkpoint, cut, settings.numerics)
        run.train()
        self.dropout = NoDropout(settings.seed, torch.device("cpu"))
        self.passes = TicketedPass(
            TrainedBlocks(run, settings, self.dropout), Graphs(settings.max_positions)
        )
        weights = PeftAdapter(NamedBlocks.of(run), settings.lora, settings.seed)
        outdate = self.passes.graphs.outdate
        self.adapter = TrainedAdapter(weights, settings.optimizer, outdate)
        self.states: dict[int, PartState] = {0: state_of(self)}

    @property
    def adapters(self) -> dict[str, TrainedAdapter]:
        return {"default": self.adapter}


class ScriptedTrunk(ScriptedNode):
    """An adapter a member, averaged by the aggregator's word."""

    def __init__(self, settings: Settings, members: Sequence[str], **options: Any) -> None:
        super().__init__(settings, Role.TRUNK, **options)
        how = TrainingSettings.of(settings, settings.training.seed, 1 << 16)
        self.trunks = {m: MemberTrunk(self.checkpoint, self.cut, how) for m in members}
        self.attempt = b""
        self._busy = asyncio.Lock()
        self._replies: dict[Any, Reply] = {}
        self._steps: dict[str, int] = {}

    async def begin(self, round_number: int, attempt: bytes) -> None:
        async with self._busy:
            self.attempt = attempt
            self._replies.clear()
            self._steps = dict.fromkeys(self.trunks, 0)
            for trunk in self.trunks.values():
                restore(trunk, trunk.states[round_number])

    async def end(self, round_number: int) -> None:
        async with self._busy:
            held = [trunk.adapter.tensors() for trunk in self.trunks.values()]
            mean = {name: sum(one[name] for one in held) / len(held) for name in held[0]}
            for trunk in self.trunks.values():
                trunk.adapter.load(mean)
                trunk.states[round_number + 1] = state_of(trunk)

    async def answer(self, member: str, frame: Frame) -> Reply:
        async with self._busy:
            kind = frame.envelope.kind
            body: Any = frame.body(
                {Kind.FORWARD: Forward, Kind.BACKWARD: Backward, Kind.STEP: Step}[kind]
            )
            if body.attempt != self.attempt:
                raise AttemptOver("another attempt")
            key = (member, kind, body.step, getattr(body, "micro", None))
            if key not in self._replies:
                work = {Kind.FORWARD: self._forward, Kind.BACKWARD: self._backward}
                do = work.get(kind, self._step)
                self._replies[key] = await asyncio.to_thread(do, member, body, frame.payload)
            return self._replies[key]

    def _forward(self, member: str, body: Forward, payload: Sequence[bytes]) -> Reply:
        passes, batch = self.trunks[member].passes, Batch(tuple(body.lengths))
        states = decode_states(payload, batch.total, self.spec, torch.float32)
        if body.trains:
            if body.step != self._steps[member]:
                raise Busy("the step before has yet to come", 0.05)
            ticket = (body.step, body.micro)
            outputs = passes.forward(ticket, states, batch, trains=True, wants_gradient=True)
        else:
            outputs = passes.blocks.evaluate(states, batch)
        payload = encode_states(outputs, self.spec.dtype)
        return Kind.OUTPUTS, Outputs(body.step, body.micro), payload

    def _backward(self, member: str, body: Backward, payload: Sequence[bytes]) -> Reply:
        trunk, ticket = self.trunks[member], (body.step, body.micro)
        total = trunk.passes.graphs.get(ticket).batch.total
        came = decode_gradient(payload, body.exponent, total, self.spec)
        gradient = trunk.passes.backward(ticket, came)
        assert gradient is not None
        exponent, parts = encode_gradient(gradient, self.spec.dtype)
        norm = trunk.adapter.squared_norm()
        return Kind.GRADIENT, Gradient(body.step, body.micro, exponent, norm), parts

    def _step(self, member: str, body: Step, _: Sequence[bytes]) -> Reply:
        assert body.step == self._steps[member]
        adapter = self.trunks[member].adapter
        norms = (adapter.squared_norm(), body.squared_norm)
        adapter.step(clip_factor(norms, self.settings.training.max_norm))
        self._steps[member] += 1
        return Kind.STEPPED, Stepped(self._steps[member]), ()


@dataclass
class SecureRound:
    """A secure aggregation under way; `number` from 1, in the order of the members' names."""

    server: SecureServer
    numbers: dict[str, int]
    said: dict[tuple[str, Stage], bytes] = field(default_factory=dict)


class ScriptedAggregator(ScriptedNode):
    """Rounds of all members; `events` is what became of each attempt."""

    def __init__(self, settings: Settings, trunk: ScriptedTrunk) -> None:
        super().__init__(settings, Role.AGGREGATOR)
        self._trunk = trunk
        self.names = sorted(trunk.trunks)
        how = TrainingSettings.of(settings, 7, 1 << 16)
        head, tail = load_trained_client(self.checkpoint, self.cut, how)
        drawn = head.adapter.tensors() | tail.adapter.tensors()
        self.shared = Personal(settings.federation.personal).shared(drawn)
        self.first_tail: TailStep = tail
        self.layout = AdapterLayout.of_adapters(self.shared)
        self.ended = b""
        self.round = 0
        self.attempts = 0
        self.attempt = b""
        self.gives_up = False
        self.updates: dict[str, tuple[np.ndarray, int]] = {}
        self.weights: list[int] = []
        self._secure: SecureRound | None = None

    @property
    def finished(self) -> bool:
        return self.round == self.settings.federation.rounds

    async def enlisted(self, member: str) -> None:
        here = set(self.members.values())
        owes = self.attempt == b"" or member not in self.updates
        if not self.finished and here == set(self.names) and owes:
            await self.begin()

    async def begin(self) -> None:
        """Begin the round, or begin it again."""
        self.attempts += 1
        self.attempt = secrets.token_bytes(16)
        self.updates.clear()
        self._secure = None
        await self._trunk.begin(self.round, self.attempt)

    async def answer(self, member: str, frame: Frame) -> Reply:
        match frame.envelope.kind:
            case Kind.ASK:
                return await self._task(member, frame.body(Ask))
            case Kind.UPDATE:
                return await self._update(member, frame.body(Update), frame.payload)
        return await self._secured(member, frame.body(Secure), frame.payload)

    async def _task(self, member: str, body: Ask) -> Reply:
        if self.gives_up:
            return Kind.TASK, Task(Duty.GIVE_UP, self.round), ()
        if self.finished:
            return self._with_adapters(Task(Duty.FINISH, self.round, self.ended))
        if body.failed == self.attempt:
            await self.begin()
        if not self.attempt:
            return Kind.TASK, Task(Duty.WAIT, again_ms=20), ()
        if member not in self.updates:
            steps = self.settings.federation.local_steps
            return self._with_adapters(Task(Duty.TRAIN, self.round, self.attempt, steps))
        if self._secure is not None and self._secure.server.stage is not Stage.DONE:
            number, server = self._secure.numbers[member], self._secure.server
            if server.stage is Stage.UNMASK and number not in server.waiting_for:
                return Kind.TASK, Task(Duty.WAIT, again_ms=20), ()
            task = Task(Duty.MASK, self.round, self.attempt, number=number)
            by_number = sorted(self._secure.numbers, key=self._secure.numbers.__getitem__)
            return (
                Kind.TASK,
                task,
                [encode_message(server.terms), encode_message(Roster(by_number))],
            )
        return Kind.TASK, Task(Duty.WAIT, again_ms=20), ()

    def _with_adapters(self, task: Task) -> Reply:
        return Kind.TASK, task, [self.layout.flatten(self.shared).tobytes()]

    async def _update(self, member: str, body: Update, payload: Sequence[bytes]) -> Reply:
        if body.attempt != self.attempt:
            raise AttemptOver("another attempt")
        if member in self.updates:
            return Kind.UPDATED, Updated(Fate.DUPLICATE), ()
        vector = np.frombuffer(b"".join(payload), "<f4")
        self.updates[member] = (vector, body.weight)
        if len(self.updates) == len(self.names):
            if self.settings.federation.secure:
                self._secure = self._begin_secure()
            else:
                mean = WeightedMean(self.layout)
                for came, weight in self.updates.values():
                    mean.add(self.layout.unflatten(came), weight)
                await self._end(mean.mean(), mean.weight)
        return Kind.UPDATED, Updated(Fate.COUNTED), ()

    async def _end(self, update: dict[str, torch.Tensor], weight: int) -> None:
        self.shared = {n: (t.double() + update[n]).float() for n, t in self.shared.items()}
        self.weights.append(weight)
        await self._trunk.end(self.round)
        self.round += 1
        self.ended = self.attempt
        if self.finished:
            self.attempt = b""
        else:
            await self.begin()

    def _begin_secure(self) -> SecureRound:
        members = len(self.names)
        terms = Terms(
            self.round,
            self.attempts,
            secrets.token_bytes(16),
            members,
            self.settings.federation.threshold or -(-2 * members // 3),
            self.layout.digest,
            self.layout.elements,
            1 << 10,
            self.settings.federation.max_update_norm,
        )
        numbers = {name: number for number, name in enumerate(self.names, 1)}
        return SecureRound(SecureServer(terms, self.layout), numbers)

    async def _secured(self, member: str, body: Secure, payload: Sequence[bytes]) -> Reply:
        if body.attempt != self.attempt or self._secure is None:
            raise AttemptOver("another attempt")
        secure, nothing = self._secure, (Kind.SECURED, Secured(body.attempt), ())
        server, record, *vector = secure.server, *payload
        for stage, kind in _SAID_AT.items():
            try:
                message = decode_message(kind, record)
            except FedSeaError:
                continue
            if (member, stage) in secure.said:
                return Kind.SECURED, Secured(body.attempt), [secure.said[member, stage]]
            server.receive(secure.numbers[member], message, *vector)
            if server.waiting_for:
                return nothing
            told = server.advance()
            for name, number in secure.numbers.items():
                if number in told:
                    secure.said[name, stage] = encode_message(told[number])
            if server.stage is Stage.DONE:
                result = server.mean()
                await self._end(result.update, result.weight)
                return nothing
            return Kind.SECURED, Secured(body.attempt), [secure.said[member, stage]]
        raise AssertionError("a record of no stage")


@dataclass(frozen=True, slots=True)
class ScriptedRun:
    """What a test drives."""

    settings: Settings
    broker: Broker
    trunk: ScriptedTrunk
    aggregator: ScriptedAggregator


EXACT = [
    "noise.mode=off",
    "client.wire_dtype=fp32",
    "broker.clients=tcp://127.0.0.1:*",
    "broker.nodes=tcp://127.0.0.1:*",
    "broker.heartbeat_ms=100",
    "broker.timeout_ms=1000",
    "client.request_timeout_s=0.2",
    "client.give_up_s=15",
    f"training.run={RUN}",
    "training.batch_size=2",
    "training.accumulate=2",
    "training.learning_rate=0.01",
    "federation.rounds=2",
    "federation.local_steps=3",
]


@asynccontextmanager
async def scripted_run(
    model: Path | str, out: Path, *overrides: str, members: Sequence[str] = ("a",), **options: Any
) -> AsyncIterator[ScriptedRun]:
    """Broker, trunk and aggregator; noise off and fp32 unless overridden."""
    said = [*EXACT, f"model.path={model}", f"training.out={out}", *overrides]
    settings = Settings.load(None, said)
    async with Broker(settings.broker) as broker:
        settings = settings.replace(broker={"clients": broker.clients, "nodes": broker.nodes})
        trunk = ScriptedTrunk(settings, members, **options)
        aggregator = ScriptedAggregator(settings, trunk)
        async with trunk, aggregator:
            yield ScriptedRun(settings, broker, trunk, aggregator)
