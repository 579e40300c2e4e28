"""The training client: a member of a run, behind one async context manager."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Final, Self

from fedsea_mq.errors import (
    AttemptOver,
    ConfigError,
    MasksSpent,
    NotRunning,
    OutOfTurn,
    RemoteError,
    RevealRefused,
    RunGivenUp,
    StepFailed,
    TicketInUse,
    TicketUnknown,
    TooFewClients,
    TrainingDiverged,
    TrunkDiverged,
)
from fedsea_mq.log import get_logger
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.training_messages import Ask, Duty, Task
from fedsea_mq.security.client_seals import ClientSeals
from fedsea_mq.security.keyring import Keyring
from fedsea_mq.serving.compute_thread import compute_thread
from fedsea_mq.settings import Settings
from fedsea_mq.transport.link import MakeLink, PeerLink
from fedsea_mq.transport.requests import Patience, Requests
from nodes.trainer.duties import Duties
from nodes.trainer.events import AttemptFailed, Event, SessionsLost
from nodes.trainer.examples import Examples
from nodes.trainer.member import Member
from nodes.trainer.metrics import TrainerMetrics
from nodes.trainer.sessions import LOST, Membership, Sessions

_log = get_logger(__name__)
# After these an attempt cannot go on; the aggregator is told, and another one can.
_ATTEMPT_FAILED: Final = (
    AttemptOver,
    TicketUnknown,
    TicketInUse,
    StepFailed,
    OutOfTurn,
    TooFewClients,
    RevealRefused,
    MasksSpent,
)


@dataclass(frozen=True, slots=True)
class _Running:
    """What exists only while the client runs."""

    member: Member
    requests: Requests
    sessions: Sessions
    duties: Duties


class TrainingClient:
    """Trains on its examples, round by round, until the run is over.

        async with TrainingClient(settings, member="clinic-2") as trainer:
            async for event in trainer.run():
                print(event)

    `member` is the client's name in the run, the same after a restart; `examples` are what it
    trains on. By default both are as the settings say. `metrics` is what it shows. With
    `lora.dropout`, one a process: dropout draws from the process's random numbers.

    Raises on entry: `ConfigError` without a run or a member, `TaskDataError` for an empty shard,
    and what the checkpoint and the task raise.
    """

    def __init__(
        self,
        settings: Settings,
        member: str | None = None,
        examples: Examples | None = None,
        make_link: MakeLink = PeerLink,
    ) -> None:
        if member is not None:
            settings = settings.replace(training={"member": member})
        self._settings = settings
        self._given = examples
        self._make_link = make_link
        self._stack = AsyncExitStack()
        self._running: _Running | None = None
        self.metrics = TrainerMetrics(settings.training.member or "trainer")

    async def __aenter__(self) -> Self:
        run, name = self._settings.training.run, self._settings.training.member
        if run is None or name is None:
            raise ConfigError("training.run and training.member must be set to train")
        loop = asyncio.get_running_loop()
        seals = ClientSeals.of(self._settings.security)
        async with AsyncExitStack() as stack:
            executor = await stack.enter_async_context(compute_thread("fedsea trainer compute"))
            member = await loop.run_in_executor(
                executor, Member.load, self._settings, run, name, self._given, executor
            )
            broker = self._settings.broker
            link = self._make_link(
                broker.clients,
                self._receive,
                max_part_bytes=broker.max_part_mb << 20,
                keys=Keyring.load(self._settings.security).to_broker(broker.clients),
                on_refused=self._refused,
                counts=self.metrics.frames,
            )
            await stack.enter_async_context(link)
            self._running = self._wired(run, member, link, seals)
            self._stack = stack.pop_all()
        _log.info("trainer ready", run=run, member=name, examples=len(member.examples.train))
        return self

    def _wired(
        self, run: str, member: Member, link: PeerLink, seals: ClientSeals | None
    ) -> _Running:
        client, parts = self._settings.client, member.parts
        patience = Patience(client.request_timeout_s, client.give_up_s)
        requests = Requests(link.send, patience, self._settings.broker.at, seals)
        self.metrics.watch(requests)
        sessions = Sessions(
            requests,
            Membership(
                run, member.name, parts.fingerprint, self._settings.agreed, parts.spec.dtype
            ),
            give_up_s=client.give_up_s,
            round_s=self._settings.federation.training_s,
        )
        return _Running(member, requests, sessions, Duties(member, sessions))

    async def __aexit__(self, *reason: object) -> None:
        await self._stack.__aexit__(None, None, None)
        self._running = None

    def _receive(self, frame: Frame) -> None:
        if self._running is not None:
            self._running.requests.receive(frame)
            self._running.sessions.receive(frame)

    def _refused(self, error: RemoteError) -> None:
        if self._running is not None:
            self._running.requests.refuse(error)

    @property
    def _now(self) -> _Running:
        if self._running is None:
            raise NotRunning("the training client is not running")
        return self._running

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on each element of the states that leave the head."""
        return self._now.member.parts.noise.std

    @property
    def head_rms(self) -> float:
        """What a relative noise scale is relative to."""
        return self._now.member.parts.head_rms

    @property
    def examples(self) -> Examples:
        """What is trained on, and how many examples were left out."""
        return self._now.member.examples

    async def run(self) -> AsyncGenerator[Event]:
        """Take part until the run is over; training goes on as the events are taken.

        Raises:
            RunUnknown, PeerUnreachable, Busy: no trunk or aggregator of the run for
                `client.give_up_s`.
            FingerprintMismatch, RunMismatch: the run is of another model or other settings.
            MemberReplaced: another process takes part under this member's name.
            RunGivenUp: the aggregator gave up.
            TrainingDiverged: a loss or gradient is not finite, here or at the trunk; what is saved
                is of before.
            UpdateRefused, MalformedFrame, CheckpointError and others: as their names say.
        """
        async with aclosing(self._until_over()) as events:
            async for event in events:
                self.metrics.note(event)
                yield event

    async def _until_over(self) -> AsyncGenerator[Event]:
        """Enlist, and again where the sessions were lost."""
        sessions = self._now.sessions
        while True:
            try:
                async with sessions.enlisted(), aclosing(self._attend()) as events:
                    async for event in events:
                        yield event
                return
            except LOST as error:
                yield SessionsLost(type(error).__name__)
            await sessions.pause()

    async def _attend(self) -> AsyncGenerator[Event]:
        """Do what the aggregator asks for, until it says that the run is over."""
        failed: bytes | None = None
        while True:
            task, payload = await self._ask(failed)
            # That an attempt failed here does not mean that the run did not go on from it.
            over = task.duty in (Duty.FINISH, Duty.GIVE_UP)
            if task.duty is Duty.WAIT or (task.attempt == failed and not over):
                await asyncio.sleep(task.again_ms / 1000)
                continue
            self._now.sessions.worked()
            failed = None
            try:
                async with aclosing(self._duty(task, payload)) as events:
                    async for event in events:
                        yield event
            except _ATTEMPT_FAILED as error:
                failed = task.attempt
                yield AttemptFailed(task.round, type(error).__name__)
            except (TrainingDiverged, TrunkDiverged) as error:
                raise TrainingDiverged(
                    f"in round {task.round}: {error}; the state before it is kept, and a smaller "
                    "training.learning_rate may help"
                ) from error
            if task.duty is Duty.FINISH:
                return

    async def _ask(self, failed: bytes | None) -> tuple[Task, Sequence[bytes]]:
        samples = len(self._now.member.examples.train)
        reply = await self._now.sessions.ask(Role.AGGREGATOR, Kind.ASK, Ask(samples, failed))
        return reply.body(Task), reply.payload

    def _duty(self, task: Task, payload: Sequence[bytes]) -> AsyncGenerator[Event]:
        duties = self._now.duties
        match task.duty:
            case Duty.TRAIN:
                return duties.train(task, payload)
            case Duty.MASK:
                return duties.mask(task, payload)
            case Duty.FINISH:
                return duties.finish(task, payload)
        raise RunGivenUp(f"the aggregator gave up in round {task.round}")
