"""What the aggregator asks a member to do: train in a round, mask its update, finish."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Final

from fedsea_mq.errors import AttemptOver, MalformedFrame
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.training_messages import Secure, Secured, Task, Update, Updated
from fedsea_mq.training.secure_aggregation.messages import Roster, Terms, decode_message
from fedsea_mq.transport.requests import Traffic
from nodes.trainer.events import Event, Finished, Masked, RoundDone, StepDone
from nodes.trainer.member import Member
from nodes.trainer.member_states import LocalRound
from nodes.trainer.secure import Seat, SecureAttempt
from nodes.trainer.sessions import Sessions
from nodes.trainer.steps import Stepping, Steps

_OTHERS_S: Final = 0.1
_MAX_LOSS: Final = 1e6


class Duties:
    """Each duty is a generator of events; what it raises says whether the attempt can go on."""

    def __init__(self, member: Member, sessions: Sessions) -> None:
        self._member = member
        self._sessions = sessions
        self._secure: SecureAttempt | None = None
        training, federation = member.settings.training, member.settings.federation
        self._stepping = Stepping(training.batch_size, training.max_norm)
        self._step_examples = training.batch_size * training.accumulate
        self._is_secure = federation.secure
        self._threshold = federation.threshold
        self._max_norm = federation.max_update_norm

    async def train(self, task: Task, shared: Sequence[bytes]) -> AsyncGenerator[Event]:
        """Take the round's steps and hand in the update; only that, if the steps are done."""
        if task.local_steps < 1:
            raise MalformedFrame("a round without steps")
        began, traffic = time.monotonic(), Traffic()
        states = self._member.local.states
        done = await self._member.run(partial(states.done, task.round, task.attempt))
        validation: float | None = None
        if done is None:
            position = await self._member.run(partial(self._member.local.begin, task.round, shared))
            await self._member.run(self._member.compute.begin)
            async with self._steps(task) as steps:
                losses = []
                for number in range(task.local_steps):
                    event = await self._step(task, steps, number, position, traffic)
                    position += self._step_examples
                    losses.append(event.loss)
                    yield event
                await steps.settled()
                done = await self._member.run(
                    partial(
                        self._member.local.end,
                        task.round,
                        task.attempt,
                        position,
                        self._step_examples * task.local_steps,
                        sum(losses) / len(losses),
                    )
                )
                if self._member.examples.validation:
                    validation = await steps.evaluate(self._member.examples.validation, traffic)
        yield await self._hand_in(done, validation, traffic, began)

    def _steps(self, task: Task) -> Steps:
        member = self._member
        return Steps(member.compute, member.executor, self._sessions, task.attempt, self._stepping)

    async def _step(
        self, task: Task, steps: Steps, number: int, position: int, traffic: Traffic
    ) -> StepDone:
        began, own = time.monotonic(), Traffic()
        taken = self._member.order.take(position, self._step_examples)
        result = await steps.take([self._member.examples.train[one] for one in taken], own)
        traffic.bytes_up += own.bytes_up
        traffic.bytes_down += own.bytes_down
        seconds = time.monotonic() - began
        return StepDone(
            round=task.round,
            step=number,
            steps=self._member.parts.steps,
            loss=result.loss,
            norm=result.norm,
            samples=len(taken),
            seconds=seconds,
            samples_per_s=len(taken) / seconds,
            bytes_up=own.bytes_up,
            bytes_down=own.bytes_down,
            sigma=self._member.parts.noise.std,
        )

    async def _hand_in(
        self, done: LocalRound, validation: float | None, traffic: Traffic, began: float
    ) -> RoundDone:
        weight, payload = done.weight, [done.update.astype("<f4").tobytes()]
        if self._is_secure:
            weight, payload = 0, []
        body = Update(done.attempt, weight, min(done.loss, _MAX_LOSS))
        reply = await self._sessions.ask(
            Role.AGGREGATOR, Kind.UPDATE, body, payload if done.update.size else [], traffic
        )
        seconds = time.monotonic() - began
        return RoundDone(
            round=done.round,
            loss=done.loss,
            validation_loss=validation,
            samples=done.weight,
            seconds=seconds,
            samples_per_s=done.weight / seconds,
            bytes_up=traffic.bytes_up,
            bytes_down=traffic.bytes_down,
            update_norm=done.norm,
            clipped=done.norm > self._max_norm,
            fate=reply.body(Updated).fate,
            sigma=self._member.parts.noise.std,
        )

    async def mask(self, task: Task, payload: Sequence[bytes]) -> AsyncGenerator[Event]:
        """Give the update of an attempt whose steps are done, masked."""
        member = self._member
        done = await member.run(partial(member.local.states.done, task.round, task.attempt))
        if done is None:
            raise AttemptOver("an update to mask that this member does not have")
        secure = self._secure
        if secure is None or secure.attempt != task.attempt:
            if len(payload) != 2:
                raise MalformedFrame(f"terms of {len(payload)} parts, expected 2")
            terms, roster = decode_message(Terms, payload[0]), decode_message(Roster, payload[1])
            if terms.round != task.round:
                raise MalformedFrame(f"terms of round {terms.round} in round {task.round}")
            layout = member.local.layout
            seat = Seat(task.number, member.name, roster.members)
            secure = SecureAttempt(task.attempt, terms, layout, seat, self._threshold)
            self._secure = secure

        if secure.over:  # the others have still to answer
            await asyncio.sleep(_OTHERS_S)
            return

        async def say(parts: list[bytes]) -> bytes:
            return await self._say(task.attempt, parts)

        await secure.take_part(done.update, done.weight, say, member.run, member.reveals)
        yield Masked(task.round)

    async def _say(self, attempt: bytes, parts: list[bytes]) -> bytes:
        reply = await self._sessions.ask(Role.AGGREGATOR, Kind.SECURE, Secure(attempt), parts)
        if reply.body(Secured).attempt != attempt:
            raise MalformedFrame("an answer about another attempt")
        return b"".join(reply.payload)

    async def finish(self, task: Task, shared: Sequence[bytes]) -> AsyncGenerator[Event]:
        """Write the member's final adapters."""
        await self._member.run(partial(self._member.local.finish, task.round, task.attempt, shared))
        yield Finished(task.round, str(self._member.folder))
