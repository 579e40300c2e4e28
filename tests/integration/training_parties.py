"""A client and an aggregator of a training run, as small as the protocol lets them be."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Self

import torch

from fedsea_mq.errors import FedSeaError
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.partition import Cut
from fedsea_mq.model.wire_gradients import decode_gradient, encode_gradient
from fedsea_mq.model.wire_states import decode_states, encode_states
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.protocol.messages import Nothing
from fedsea_mq.protocol.payload import PayloadSpec
from fedsea_mq.protocol.training_messages import (
    Backward,
    BeginRound,
    EndRound,
    Enlist,
    Forward,
    Gradient,
    RoundState,
    Step,
    Stepped,
)
from fedsea_mq.settings import Settings
from fedsea_mq.tasks.encoding import Encoded
from fedsea_mq.training.batch import Packed
from fedsea_mq.training.load import load_trained_client
from fedsea_mq.training.optimizer import clip_factor
from fedsea_mq.training.settings import TrainingSettings
from fedsea_mq.transport.link import PeerLink
from fedsea_mq.transport.requests import Patience, Requests


class Party:
    """Enlisted with the trunk while inside `async with`; each frame is sent `copies` times."""

    def __init__(self, settings: Settings, member: str | None, copies: int = 1) -> None:
        model = settings.model
        self.cut = Cut(model.head_blocks, model.tail_blocks)
        self.checkpoint = Checkpoint.open(model.path)
        self.settings = settings
        self.member = member
        self.session = secrets.token_bytes(16)
        self.spec = PayloadSpec(settings.client.wire_dtype, self.checkpoint.hidden)
        self._copies = copies
        self.closed: list[FedSeaError | None] = []
        self._link = PeerLink(
            settings.broker.clients,
            self._receive,
            max_part_bytes=64 << 20,
        )
        self._requests = Requests(self._send, Patience(resend_s=5.0, give_up_s=30.0))
        self._stack = AsyncExitStack()

    def _receive(self, frame: Frame) -> None:
        self._requests.receive(frame)
        if frame.envelope.kind is Kind.CLOSE:
            self.closed.append(frame.refusal())

    def _send(self, parts: Parts) -> None:
        for _ in range(self._copies):
            self._link.send(parts)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._link)
            await self.ask(Kind.ENLIST, self._enlisting())
            self._stack = stack.pop_all()
        return self

    def _enlisting(self) -> Enlist:
        run = self.settings.training.run
        assert run is not None
        fingerprint = self.checkpoint.fingerprint(self.cut)
        agreed, dtype = self.settings.agreed, self.spec.dtype
        return Enlist(Role.TRUNK, run, fingerprint, agreed, dtype, self.member)

    async def __aexit__(self, *_: object) -> None:
        """Gone without a word, as if killed."""
        await self._stack.aclose()

    async def ask(self, kind: Kind, body: Any, payload: Sequence[bytes] = ()) -> Frame:
        return await self._requests.ask(kind, body, session=self.session, payload=payload)

    async def close(self) -> None:
        self._send(Frame.build(Kind.CLOSE, Nothing(), session=self.session).parts())


class Coordinator(Party):
    """Stands for the aggregator."""

    def __init__(self, settings: Settings, copies: int = 1) -> None:
        super().__init__(settings, None, copies)

    async def begin(
        self, number: int, steps: int, members: Sequence[str], attempt: bytes | None = None
    ) -> bytes:
        attempt = attempt or secrets.token_bytes(16)
        body = BeginRound(number, attempt, steps, list(members))
        state = (await self.ask(Kind.BEGIN_ROUND, body)).body(RoundState)
        assert (state.round, state.attempt) == (number, attempt)
        return attempt

    async def end(self, number: int, attempt: bytes, counted: Sequence[str]) -> None:
        body = EndRound(number, attempt, list(counted))
        state = (await self.ask(Kind.END_ROUND, body)).body(RoundState)
        assert (state.round, state.attempt) == (number + 1, attempt)


@dataclass
class Took:
    """A step of a client: its loss, and the step's own answer, which is not waited for."""

    loss: float
    stepped: asyncio.Task[Frame]


@dataclass
class _Pass:
    loss: float
    squared_norm: float


class SplitClient(Party):
    """Head and tail in process, the trunk over the sockets."""

    def __init__(self, settings: Settings, member: str, copies: int = 1) -> None:
        super().__init__(settings, member, copies)
        own = TrainingSettings.of(settings, settings.training.seed, settings.training.max_positions)
        self.head, self.tail = load_trained_client(self.checkpoint, self.cut, own)

    async def train(
        self, attempt: bytes, steps: Sequence[Sequence[Sequence[Encoded]]]
    ) -> list[float]:
        """All steps of a round, each of some batches; the loss of each step."""
        taken = [await self.step(attempt, number, step) for number, step in enumerate(steps)]
        stepped = await taken[-1].stepped
        assert stepped.body(Stepped).steps == len(steps)
        await asyncio.gather(*(one.stepped for one in taken))
        return [one.loss for one in taken]

    async def step(self, attempt: bytes, step: int, batches: Sequence[Sequence[Encoded]]) -> Took:
        """Batches in flight at once, then the step; its answer is not awaited."""
        packed = [Packed.of(batch) for batch in batches]
        answers = sum(one.answer_tokens for one in packed)
        passes = [
            self._learn(attempt, step, micro, one, answers) for micro, one in enumerate(packed)
        ]
        done = [await one for one in asyncio.as_completed(passes)]
        ends = (self.head.adapter, self.tail.adapter)
        own = sum(adapter.squared_norm() for adapter in ends)
        # That of the trunk is of all batches in the answer that came last.
        factor = clip_factor([own, done[-1].squared_norm], self.settings.training.max_norm)
        for adapter in ends:
            adapter.step(factor)
        stepping = asyncio.create_task(self.ask(Kind.STEP, Step(attempt, step, own)))
        return Took(sum(one.loss for one in done), stepping)

    async def _learn(
        self, attempt: bytes, step: int, micro: int, packed: Packed, answers: int
    ) -> _Pass:
        try:
            outputs = await self.forward(attempt, step, micro, packed)
        except FedSeaError:
            self.head.drop((step, micro))
            raise
        learned = self.tail.learn(outputs, packed.batch, packed.labels, answer_tokens=answers)
        assert learned.gradient is not None
        squared, back = await self.backward(attempt, step, micro, learned.gradient)
        if self.head.wants_gradient:
            self.head.backward((step, micro), back)
        return _Pass(learned.loss, squared)

    async def forward(
        self, attempt: bytes, step: int, micro: int, packed: Packed, *, trains: bool = True
    ) -> torch.Tensor:
        states = self.head.forward((step, micro), packed.ids, packed.batch)
        if not trains:
            self.head.drop((step, micro))
        body = Forward(attempt, step, micro, trains, list(packed.batch.lengths))
        reply = await self.ask(Kind.FORWARD, body, encode_states(states, self.spec.dtype))
        return decode_states(reply.payload, packed.batch.total, self.spec, torch.float32)

    async def backward(
        self, attempt: bytes, step: int, micro: int, gradient: torch.Tensor
    ) -> tuple[float, torch.Tensor]:
        exponent, payload = encode_gradient(gradient, self.spec.dtype)
        reply = await self.ask(Kind.BACKWARD, Backward(attempt, step, micro, exponent), payload)
        said = reply.body(Gradient)
        rows = len(gradient)
        return said.squared_norm, decode_gradient(reply.payload, said.exponent, rows, self.spec)
