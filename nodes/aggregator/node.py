"""The aggregator node: sockets, a thread, a clock and files around the pure core."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self

from fedsea_mq.errors import FedSeaError, NotRunning, RemoteError, UpdateRefused
from fedsea_mq.log import get_logger
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.protocol.messages import Load, Register
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.protocol.training_messages import BeginRound, EndRound, Enlist
from fedsea_mq.security.client_seals import ClientSeals
from fedsea_mq.security.keyring import Keyring
from fedsea_mq.security.node_seals import NodeSeals
from fedsea_mq.serving.background import Background
from fedsea_mq.serving.compute_thread import compute_thread
from fedsea_mq.serving.memory import peak_rss_bytes
from fedsea_mq.settings import Settings
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
from fedsea_mq.training.aggregation.reports import RunEvent
from fedsea_mq.training.aggregator_state import AggregatorState, save_aggregator
from fedsea_mq.training.rounds import Phase, Rounds
from fedsea_mq.training.shared_adapters import SharedAdapters
from fedsea_mq.transport.link import PeerLink
from fedsea_mq.transport.requests import Patience, Requests
from nodes.aggregator.metrics import AggregatorMetrics
from nodes.aggregator.plan import RunPlan
from nodes.aggregator.trunk_session import TrunkSession
from nodes.membership import Membership

_log = get_logger(__name__)
_TICK_S: Final = 0.1


def _unwatched(_: RunEvent) -> None:
    return None


class AggregatorNode:
    """Runs the rounds of `training.run` while inside `async with`; `on_event` is told of them.

    Raises on entry: `ConfigError` for a run that cannot be, or without keys to seal sessions with,
    what the model says, and `CheckpointError` where the run is there already and
    `training.resume` is not set. `metrics` is what it shows.
    """

    def __init__(
        self, settings: Settings, on_event: Callable[[RunEvent], None] = _unwatched
    ) -> None:
        self._settings = settings
        self._on_event = on_event
        self.name = f"aggregator-{secrets.token_hex(3)}"
        self.metrics = AggregatorMetrics(self.name)
        self._stack = AsyncExitStack()
        self._parts: _Parts | None = None
        self._over = asyncio.Event()
        self._all_told = asyncio.Event()
        self._trunk_task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        security = self._settings.security
        seals, trunk_seals = NodeSeals.of(security), ClientSeals.of(security)
        async with AsyncExitStack() as stack:
            executor = await stack.enter_async_context(compute_thread(f"{self.name} compute"))
            plan, state = await loop.run_in_executor(executor, self._load)
            self.metrics.resumed(state.progress.done)
            max_part_bytes = self._settings.broker.max_part_mb << 20
            nodes, clients = self._settings.broker.nodes, self._settings.broker.clients
            keyring = Keyring.load(self._settings.security)
            link = PeerLink(
                nodes,
                self._receive,
                max_part_bytes=max_part_bytes,
                keys=keyring.to_broker(nodes),
                on_refused=self._refused,
                counts=self.metrics.with_members,
            )
            to_trunk = PeerLink(
                clients,
                self._receive_trunk,
                max_part_bytes=max_part_bytes,
                keys=keyring.to_broker(clients),
                on_refused=self._refused,
                counts=self.metrics.with_trunk,
            )
            await stack.enter_async_context(link)
            await stack.enter_async_context(to_trunk)
            background = await stack.enter_async_context(Background())
            membership = Membership(link.send, self._offer, self._load_now)
            trunk = self._trunk_session(to_trunk, plan, trunk_seals)
            stack.callback(membership.leave)
            stack.callback(trunk.close)
            core = Aggregation(
                self._terms(plan),
                Rounds(plan.rounds, state.progress),
                plan.layout.elements,
                plan.secure,
            )
            shared = plan.shared(state.shared)
            self._parts = _Parts(
                plan,
                core,
                shared,
                executor,
                link,
                seals,
                background,
                membership,
                trunk,
            )
            self._act(core.begin(shared.vector, shared.now.attempt))
            background.start(membership.run(), f"{self.name} membership")
            background.start(trunk.run(), f"{self.name} trunk lease")
            background.start(self._tick(), f"{self.name} clock")
            self._stack = stack.pop_all()
        _log.info("aggregator ready", node=self.name, run=plan.run, round=state.progress.done)
        return self

    async def __aexit__(self, *reason: object) -> None:
        await self._stack.__aexit__(None, None, None)
        self._parts = None

    async def registered(self) -> None:
        """Wait until the broker knows this node."""
        await self._running.membership.registered.wait()

    async def ended(self) -> bool:
        """Wait until the run is over and all members know, or `client.give_up_s` later.

        Whether it finished; else it was given up.
        """
        await self._over.wait()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._all_told.wait(), self._settings.client.give_up_s)
        return self._running.core.phase is Phase.FINISHED

    @property
    def _running(self) -> _Parts:
        if self._parts is None:
            raise NotRunning(f"aggregator node {self.name} is not running")
        return self._parts

    def _load(self) -> tuple[RunPlan, AggregatorState]:
        plan = RunPlan.of(self._settings)
        return plan, plan.begin()

    def _terms(self, plan: RunPlan) -> RunTerms:
        return RunTerms(
            node=self.name,
            run=plan.run,
            fingerprint=plan.fingerprint,
            agreed=self._settings.agreed,
            lease_s=self._settings.trunk.lease_s,
        )

    def _trunk_session(
        self, link: PeerLink, plan: RunPlan, seals: ClientSeals | None
    ) -> TrunkSession:
        client = self._settings.client
        patience = Patience(client.request_timeout_s, client.give_up_s)
        enlist = Enlist(
            role=Role.TRUNK,
            run=plan.run,
            fingerprint=plan.fingerprint,
            agreed=self._settings.agreed,
            dtype=WireDtype.FP32,
            member=None,
        )
        return TrunkSession(
            Requests(link.send, patience, self._settings.broker.at, seals),
            enlist,
            client.give_up_s,
            self._trunk_lost,
        )

    def _receive(self, frame: Frame) -> None:
        parts = self._running
        if frame.envelope.session:
            self._receive_member(frame)
            return
        try:
            parts.membership.receive(frame)
        except FedSeaError as error:
            _log.warning("frame refused", reason=str(error))

    def _receive_member(self, frame: Frame) -> None:
        parts = self._running
        try:
            opened = frame if parts.seals is None else parts.seals.open(frame)
        except FedSeaError as error:
            parts.link.send(Frame.error(error, frame.envelope).parts())
            return
        self._act(parts.core.receive(opened, time.monotonic()))
        if parts.seals is not None and frame.envelope.kind is Kind.CLOSE:
            parts.seals.forget(frame.envelope.session)

    def _send(self, reply: Parts) -> None:
        parts = self._running
        sealed = reply if parts.seals is None else parts.seals.seal(reply)
        if sealed is not None:
            parts.link.send(sealed)

    def _receive_trunk(self, frame: Frame) -> None:
        self._running.trunk.receive(frame)

    def _refused(self, error: RemoteError) -> None:
        """The broker does not trust this node; the link asks again."""
        if self._parts is not None:
            self._parts.trunk.refused(error)

    def _trunk_lost(self) -> None:
        _log.warning("the session with the trunk was lost", node=self.name)
        self._act(self._running.core.trunk_lost(time.monotonic()))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._act(self._running.core.tick(time.monotonic()))

    def _act(self, actions: Sequence[Action]) -> None:
        parts = self._running
        for action in actions:
            match action:
                case Reply(reply):
                    self._send(reply)
                case Report(event):
                    self.metrics.note(event)
                    self._on_event(event)
                case BeginRoundAtTrunk(body) | EndRoundAtTrunk(body):
                    self._tell_trunk(body)
                case _:
                    self._compute(action)
        if parts.core.over:
            self._over.set()
            if not parts.core.untold:
                self._all_told.set()

    def _tell_trunk(self, body: BeginRound | EndRound) -> None:
        """What the trunk was being told before is of no use any more."""
        if self._trunk_task is not None:
            self._trunk_task.cancel()
        work = self._told_trunk(body)
        self._trunk_task = self._running.background.start(work, f"{self.name} trunk")

    async def _told_trunk(self, body: BeginRound | EndRound) -> None:
        core = self._running.core
        try:
            await self._running.trunk.tell(body)
            self._trunk_task = None  # what follows may tell it the next thing
        except RemoteError as error:
            self._trunk_task = None
            reason = f"the trunk: {type(error).__name__}"
            self._act(core.trunk_failed(body.attempt, reason, time.monotonic()))
            return
        done = core.trunk_began if isinstance(body, BeginRound) else core.trunk_ended
        self._act(done(body.attempt, time.monotonic()))

    def _compute(self, action: CheckUpdate | AddUpdate | AddMasked | Average | Save) -> None:
        """Run it on the compute thread, in order, and act on what comes back."""
        parts = self._running
        work, back = self._work(action)
        # Queued now, and not when the task runs: the order of the actions is theirs on the thread.
        result = asyncio.get_running_loop().run_in_executor(parts.executor, work)
        parts.background.start(self._computed(result, back), f"{self.name} result")

    async def _computed(
        self, result: asyncio.Future[Any], back: Callable[[Any], list[Action]]
    ) -> None:
        self._act(back(await result))

    def _work(
        self, action: CheckUpdate | AddUpdate | AddMasked | Average | Save
    ) -> tuple[Callable[[], Any], Callable[[Any], list[Action]]]:
        """What the thread does, and what the core is told."""
        core, shared = self._running.core, self._running.shared
        match action:
            case CheckUpdate():
                return (
                    partial(_checked, shared, action),
                    lambda outcome: core.checked(action, outcome, time.monotonic()),
                )
            case AddUpdate(attempt, update, weight):
                return partial(shared.add, attempt, update, weight), lambda _: []
            case AddMasked():
                return (
                    partial(_masked, action),
                    lambda error: core.masked(action, error, time.monotonic()),
                )
            case Average(attempt):
                return (
                    partial(_averaged, shared, action),
                    lambda outcome: core.averaged(attempt, outcome, time.monotonic()),
                )
            case Save():
                return partial(self._save, action), lambda _: core.saved(time.monotonic())

    def _save(self, save: Save) -> None:
        parts = self._running
        if save.attempt is not None:
            parts.shared.take(save.attempt)
        state = AggregatorState(self._settings.agreed, save.progress, parts.shared.now)
        save_aggregator(parts.plan.folders, state)
        if save.last:
            parts.plan.write_adapters(parts.shared.now)

    def _offer(self) -> Register:
        parts = self._running
        return Register(
            name=self.name,
            fingerprint=parts.plan.fingerprint,
            head_blocks=parts.plan.cut.head_blocks,
            tail_blocks=parts.plan.cut.tail_blocks,
            hidden=parts.plan.hidden,
            load=self._load_now(),
            sessions=parts.core.members.ids,
            owners=parts.core.members.owners,
            role=Role.AGGREGATOR,
            run=parts.plan.run,
        )

    def _load_now(self) -> Load:
        return Load(
            kv_positions_free=0,
            kv_positions_total=0,
            sessions=len(self._running.core.members),
            sessions_free=0,
            peak_rss_bytes=peak_rss_bytes(),
        )


@dataclass(frozen=True, slots=True)
class _Parts:
    """What an aggregator node is made of while it runs."""

    plan: RunPlan
    core: Aggregation
    shared: SharedAdapters
    executor: Executor
    link: PeerLink
    seals: NodeSeals | None
    background: Background
    membership: Membership
    trunk: TrunkSession


def _checked(shared: SharedAdapters, work: CheckUpdate) -> Checked | UpdateRefused:
    try:
        clipped = shared.clipped(work.payload)
    except UpdateRefused as error:
        return error
    return Checked(clipped, clipped.norm, clipped.clipped)


def _masked(work: AddMasked) -> FedSeaError | None:
    try:
        work.server.receive(work.number, work.message, work.vector)
    except FedSeaError as error:
        return error
    return None


def _averaged(shared: SharedAdapters, work: Average) -> Averaged | FedSeaError:
    try:
        if work.server is None:
            return Averaged(shared.average(work.attempt))
        mean = work.server.mean()
        return Averaged(shared.average_of(work.attempt, mean), mean.survivors)
    except FedSeaError as error:
        return error
