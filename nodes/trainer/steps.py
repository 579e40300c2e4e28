"""The optimiser steps of one attempt at a round, over a session with the trunk.

Of one step, all batches are under way at once: while some travel, others are in the head or tail.
What learns does so in the batches' order, whatever order answers come in, so that a repeated
attempt computes the same numbers. The optimiser step is not waited for: the next batch follows it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, ParamSpec, TypeVar

from fedsea_mq.errors import LimitExceeded, MalformedFrame
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.training_messages import (
    MAX_MICROS,
    Backward,
    Forward,
    Gradient,
    Outputs,
    Step,
    Stepped,
)
from fedsea_mq.tasks.encoding import Encoded
from fedsea_mq.training.data_order import micro_batches
from fedsea_mq.transport.requests import Traffic
from nodes.trainer.compute import Compute, MicroBatch
from nodes.trainer.in_flight import InFlight
from nodes.trainer.sessions import Sessions

P = ParamSpec("P")
T = TypeVar("T")
_EVALUATED_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True)
class Stepping:
    """How a run's steps are taken: batches of at most `batch_size`, clipped to `max_norm`."""

    batch_size: int
    max_norm: float


@dataclass(frozen=True, slots=True)
class StepResult:
    """Mean loss over the step's answer tokens, and the gradients' norm before clipping."""

    loss: float
    norm: float


class Steps:
    """Takes the steps of one attempt, one after another. Use with `async with`."""

    def __init__(
        self,
        compute: Compute,
        executor: Executor,
        sessions: Sessions,
        attempt: bytes,
        stepping: Stepping,
    ) -> None:
        self._compute = compute
        self._executor = executor
        self._sessions = sessions
        self._attempt = attempt
        self._stepping = stepping
        self._heads = asyncio.Lock()
        self._stepped: asyncio.Task[None] | None = None
        self._steps = 0
        self._flight = InFlight()

    async def __aenter__(self) -> Steps:
        return self

    async def __aexit__(self, *reason: object) -> None:
        await self._flight.__aexit__(*reason)

    async def take(self, examples: Sequence[Encoded], traffic: Traffic) -> StepResult:
        """One optimiser step over these examples.

        Raises:
            RemoteError: as the trunk refuses; the attempt cannot go on.
            TrainingDiverged: a loss or gradient is not finite; the adapters are as before.
        """
        micros = await self._run(self._packed, examples)
        if len(micros) > MAX_MICROS:
            raise LimitExceeded(f"a step of {len(micros)} batches, at most {MAX_MICROS}")
        answers = sum(micro.packed.answer_tokens for micro in micros)
        async with InFlight() as flight:
            outputs = [flight.start(self._forward(micro, traffic)) for micro in micros]
            gradients: list[asyncio.Task[Frame]] = []
            loss = 0.0
            for micro, travelling in zip(micros, outputs, strict=True):
                came = await travelling
                share, exponent, payload = await self._run(
                    self._compute.learn, micro, came.payload, answers
                )
                loss += share
                if micro is micros[-1]:
                    # Its answer then tells the norm of all of them, whatever was lost on the way.
                    await asyncio.gather(*gradients)
                body = Backward(self._attempt, *micro.ticket, exponent)
                ask = self._sessions.ask(Role.TRUNK, Kind.BACKWARD, body, payload, traffic)
                gradients.append(flight.start(ask))
            trunks = 0.0
            for micro, arriving in zip(micros, gradients, strict=True):
                trunks = await self._backward(micro, await arriving)
        return StepResult(loss, await self._finish(trunks, traffic))

    def _packed(self, examples: Sequence[Encoded]) -> list[MicroBatch]:
        """Batches of one step, or after the last, with numbers that go on as if they were steps."""
        lengths = [len(one.ids) for one in examples]
        cuts = micro_batches(lengths, self._stepping.batch_size, self._sessions.frame_positions)
        numbered = (divmod(number, MAX_MICROS) for number in range(len(cuts)))
        return [
            MicroBatch.of((self._steps + more, number), examples[cut])
            for (more, number), cut in zip(numbered, cuts, strict=True)
        ]

    async def _forward(self, micro: MicroBatch, traffic: Traffic) -> Frame:
        # In order, but not all before the first tail: each waits for its turn at the thread anew.
        async with self._heads:
            states = await self._run(self._compute.send_states, micro)
        return await self._through_trunk(micro, states, traffic, trains=True)

    async def _through_trunk(
        self, micro: MicroBatch, states: list[bytes], traffic: Traffic, *, trains: bool
    ) -> Frame:
        lengths = list(micro.packed.batch.lengths)
        body = Forward(self._attempt, *micro.ticket, trains, lengths)
        reply = await self._sessions.ask(Role.TRUNK, Kind.FORWARD, body, states, traffic)
        outputs = reply.body(Outputs)
        _check(micro, (outputs.step, outputs.micro))
        return reply

    async def _backward(self, micro: MicroBatch, reply: Frame) -> float:
        gradient = reply.body(Gradient)
        _check(micro, (gradient.step, gradient.micro))
        await self._run(self._compute.take_gradient, micro, gradient.exponent, reply.payload)
        return gradient.squared_norm

    async def _finish(self, trunks: float, traffic: Traffic) -> float:
        own = await self._run(self._compute.finish_gradients)
        await self.settled()
        self._stepped = self._flight.start(self._tell_step(self._steps, own, traffic))
        await self._run(self._compute.step, (own, trunks), self._stepping.max_norm)
        self._steps += 1
        return math.sqrt(own + trunks)

    async def _tell_step(self, step: int, own: float, traffic: Traffic) -> None:
        body = Step(self._attempt, step, own)
        reply = await self._sessions.ask(Role.TRUNK, Kind.STEP, body, traffic=traffic)
        if (steps := reply.body(Stepped).steps) != step + 1:
            raise MalformedFrame(f"the trunk has taken {steps} steps, expected {step + 1}")

    async def settled(self) -> None:
        """Wait until the trunk has taken every step that was told. Raises as `take` does."""
        if self._stepped is not None:
            await self._stepped

    async def evaluate(self, examples: Sequence[Encoded], traffic: Traffic) -> float:
        """The mean loss over the answer tokens of these examples; nothing is learned."""
        answers = sum(len(one.answer) - (not one.prompt) for one in examples)
        total = 0.0
        micros = await self._run(self._packed, examples)
        for start in range(0, len(micros), _EVALUATED_AT_ONCE):
            some = micros[start : start + _EVALUATED_AT_ONCE]
            async with InFlight() as flight:
                for one in [flight.start(self._evaluate(micro, traffic)) for micro in some]:
                    total += await one
        return total / answers

    async def _evaluate(self, micro: MicroBatch, traffic: Traffic) -> float:
        states = await self._run(self._compute.send_states_to_evaluate, micro)
        reply = await self._through_trunk(micro, states, traffic, trains=False)
        return await self._run(self._compute.evaluate, micro, reply.payload)

    async def _run(self, work: Callable[P, T], *args: P.args, **_: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, work, *args)


def _check(micro: MicroBatch, came: tuple[int, int]) -> None:
    if came != micro.ticket:
        raise MalformedFrame(f"an answer to batch {came} where {micro.ticket} was asked about")
