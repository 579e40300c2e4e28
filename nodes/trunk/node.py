"""The trunk node: sockets, compute thread and clock around the pure session rules."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch

from fedsea_mq.errors import DeadlineExceeded, FedSeaError, NotRunning, StepFailed
from fedsea_mq.log import get_logger
from fedsea_mq.model.attention import Span
from fedsea_mq.model.kv_cache import KVCache
from fedsea_mq.model.parts import BlockRun, weight_bytes
from fedsea_mq.model.wire_states import decode_states, encode_states
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.security.identity import Identity
from fedsea_mq.security.node_seals import NodeSeals
from fedsea_mq.serving.background import Background
from fedsea_mq.serving.batcher import Batcher
from fedsea_mq.serving.step_metrics import StepMetrics, batcher_readings
from fedsea_mq.serving.trunk_sessions import (
    BROKER,
    Action,
    Compute,
    Release,
    Reply,
    TrunkSessions,
    TrunkTerms,
)
from fedsea_mq.serving.work import Forward, Work, joined
from fedsea_mq.settings import Settings
from fedsea_mq.telemetry import measures
from fedsea_mq.telemetry.measures import Reading
from fedsea_mq.telemetry.node_metrics import NodeMetrics
from fedsea_mq.telemetry.spans import spans_of
from fedsea_mq.transport.frame_counts import frame_readings
from fedsea_mq.transport.link import PeerLink
from fedsea_mq.transport.loop_socket import Context
from nodes.session_wires import SessionCounts, session_wires
from nodes.trunk.engine import Loaded, Offer, TrunkEngine
from nodes.trunk.memberships import Carried, Memberships
from nodes.trunk.metrics import session_readings
from nodes.trunk.next_stage import NextStage
from nodes.trunk.session_watch import SessionWatch
from nodes.trunk.training import TrunkTraining, training_terms
from nodes.trunk.wires import Wires

_log = get_logger(__name__)
_EXPIRY_CHECK_S = 0.5


class TrunkNode:
    """Serves the model's middle blocks while inside `async with`; trains them, if it has a run.

    `engine` is what computes, by default the blocks that the settings say; the sockets are of
    `context`, or of contexts of their own. `metrics` is what it shows.

    Raises on entry: `CheckpointError`, `UnsupportedModel`, `IllegalCut` or `AdapterError`, as the
    model and the adapters say; `ConfigError` for numbers that it cannot both serve and train in, or
    without the key that sessions are to be sealed to; of several ranks, `UnevenShards`, `RankLost`
    or `RankMismatch`.
    """

    def __init__(
        self,
        settings: Settings,
        engine: TrunkEngine | None = None,
        context: Context | None = None,
    ) -> None:
        self._settings = settings
        self.name = settings.trunk.name or f"trunk-{secrets.token_hex(3)}"
        self._engine = engine or TrunkEngine(settings, self.name)
        self._context = context
        self._stack = AsyncExitStack()
        self._caches: dict[bytes, KVCache] = {}
        self._empty = asyncio.Event()
        self._parts: _Parts | None = None
        self.metrics = NodeMetrics("trunk", self.name)
        self.metrics.read(self._readings)
        self._step_metrics = StepMetrics(self.metrics)
        # Of its sessions with a next stage.
        self._onward = SessionCounts()

    async def __aenter__(self) -> Self:
        seals = NodeSeals.of(self._settings.security)
        async with AsyncExitStack() as stack:
            spans = spans_of(self._settings.telemetry, "trunk", self.name)
            watch = SessionWatch(self.name, await stack.enter_async_context(spans))
            stack.callback(watch.leave)
            engine = await stack.enter_async_context(self._engine)
            loaded, batcher = engine.loaded, engine.batcher
            next_stage = await stack.enter_async_context(self._next_stage(loaded.offer))
            self._step_metrics.watch(batcher)
            wires = Wires(self._settings, self._receive, self._broker_of, seals, self._context)
            await stack.enter_async_context(wires)
            background = await stack.enter_async_context(Background())
            carried = Carried(
                self.name,
                loaded.offer,
                TrunkSessions(self._terms(loaded, wires), watch),
                self._settings.training.run,
                self._training(loaded, batcher, wires),
                batcher.stats,
            )
            memberships = Memberships(carried, wires)
            stack.callback(memberships.leave)
            self._parts = _Parts(
                loaded.run,
                engine.run_blocks,
                carried,
                watch,
                batcher,
                wires,
                background,
                memberships,
                next_stage,
            )
            memberships.start(background)
            background.start(engine.watch(), f"{self.name} compute")
            background.start(self._expire(), f"{self.name} leases")
            self._stack = stack.pop_all()
        blocks = str(loaded.offer.stage)
        _log.info("trunk ready", node=self.name, blocks=blocks)
        return self

    async def __aexit__(self, *reason: object) -> None:
        await self._stack.__aexit__(None, None, None)
        self._parts = None
        self._caches.clear()

    async def registered(self) -> None:
        """Wait until a broker knows this node."""
        await self._running.memberships.registered()

    async def drain(self) -> None:
        """Take no new sessions and wait for those being served, at most `trunk.drain_s`.

        Training goes on from what was saved, so nobody waits for it.
        """
        sessions, training = self._running.sessions, self._running.training
        sessions.draining = True
        if training is not None:
            training.sessions.draining = True
        _log.info("draining", node=self.name, sessions=len(sessions))
        if len(sessions):
            self._empty.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), self._settings.trunk.drain_s)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the weights that this node holds, in the dtypes that it holds them in."""
        return weight_bytes(self._running.run)

    @property
    def rank_tensor_bytes(self) -> Sequence[int]:
        """The same of each of its ranks, this one first; empty if it is the only one."""
        return [] if self._engine.ranks is None else self._engine.ranks.tensor_bytes

    @property
    def fingerprint(self) -> str:
        """Of the model and the cut; see `Checkpoint.fingerprint`."""
        return self._running.offer.fingerprint

    @property
    def sessions(self) -> int:
        """Sessions that are served now."""
        return len(self._running.sessions)

    @property
    def direct(self) -> str | None:
        """Where it listens for clients itself, if it does."""
        return self._running.wires.direct

    @property
    def kv_positions_free(self) -> int:
        """KV positions that no session has reserved."""
        return self._running.sessions.kv_free

    @property
    def _running(self) -> _Parts:
        if self._parts is None:
            raise NotRunning(f"trunk node {self.name} is not running")
        return self._parts

    def _training(self, loaded: Loaded, batcher: Batcher, wires: Wires) -> TrunkTraining | None:
        if loaded.training is None:
            return None
        offer = loaded.offer
        terms = training_terms(self._settings, self.name, offer.fingerprint, offer.hidden)
        return TrunkTraining(terms, loaded.training, batcher, wires.send)

    @asynccontextmanager
    async def _next_stage(self, offer: Offer) -> AsyncIterator[NextStage | None]:
        """Who has the blocks after this node's, if it is not the trunk's end."""
        if offer.next_block is None:
            yield None
            return
        make_link = partial(PeerLink, context=self._context)
        async with session_wires(self._settings, make_link, counts=self._onward) as wires:
            adapters = {ref.name: ref for ref in offer.adapters}
            next_stage = NextStage(
                wires,
                offer.fingerprint,
                offer.next_block,
                adapters,
                self._answer,
                make_known=self._make_known,
            )
            try:
                yield next_stage
            finally:
                next_stage.end_all()

    async def _make_known(self) -> None:
        await self._running.memberships.make_known()

    def _broker_of(self, session: bytes) -> bytes | None:
        return self._running.sessions.broker_of(session)

    def _terms(self, loaded: Loaded, wires: Wires) -> TrunkTerms:
        trunk, offer = self._settings.trunk, loaded.offer
        each = loaded.run.kv_shape.bytes_per_position + offer.kept_bytes_per_position
        positions = (trunk.kv_memory_mb << 20) // each
        return TrunkTerms(
            node=self.name,
            fingerprint=offer.fingerprint,
            hidden=offer.hidden,
            kv_positions=positions,
            max_session_positions=min(positions, offer.max_positions),
            max_sessions=trunk.max_sessions,
            max_frame_positions=trunk.max_frame_positions,
            lease_s=trunk.lease_s,
            direct=wires.direct,
            direct_key=wires.direct_key,
            adapters=offer.adapters,
            entry=None if offer.stage is None else offer.stage.entry,
        )

    def _receive(self, frame: Frame, origin: bytes, who: Identity) -> None:
        parts = self._running
        if parts.memberships.takes(frame, origin):
            return
        if origin == BROKER and parts.training is not None and parts.training.takes(frame):
            parts.training.receive(frame)
            return
        self._act(parts.sessions.receive(frame, _now(), origin, who.id))

    def _act(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Reply(reply, to):
                    self._running.wires.send(reply, to)
                case Compute():
                    self._compute(action)
                case Release(session):
                    self._caches.pop(session, None)
                    self._running.batcher.session_left(session)
                    if self._running.next_stage is not None:
                        self._running.next_stage.end(session)
                    if not len(self._running.sessions):
                        self._empty.set()

    def _compute(self, work: Compute) -> None:
        step, next_stage = self._step(work), self._running.next_stage
        if next_stage is not None:
            next_stage.expect(work)
        step.settle = partial(self._computed, work, step.deadline, _now())
        try:
            self._running.batcher.submit(step)
        except FedSeaError as error:
            self._computed(work, step.deadline, _now(), error)

    def _computed(
        self, work: Compute, deadline: float, came_at: float, outcome: list[bytes] | Exception
    ) -> None:
        next_stage, watch = self._running.next_stage, self._running.watch
        if isinstance(outcome, NotRunning):
            return
        if isinstance(outcome, DeadlineExceeded):
            self._answer(work, outcome)
        elif isinstance(outcome, Exception):
            reason = type(outcome).__name__  # one session's fault; the class says enough
            watch.failed(work, reason)
            self._answer(work, StepFailed(f"compute failed: {reason}"))
        else:
            watch.computed(work, _now() - came_at)
            if next_stage is not None:
                next_stage.forward(work, outcome, deadline)
            else:
                self._answer(work, outcome)

    def _answer(self, work: Compute, outcome: list[bytes] | FedSeaError) -> None:
        """Give the session the trunk's outputs, or tell why there are none."""
        sessions = self._running.sessions
        if isinstance(outcome, FedSeaError):
            self._act(sessions.failed(work, outcome))
        else:
            self._act(sessions.computed(work, outcome))

    def _step(self, work: Compute) -> Work[list[bytes]]:
        run, body = self._running.run, work.body
        session = work.envelope.session
        cache = self._caches.get(session)
        if cache is None:
            cache = self._caches[session] = run.new_cache(work.positions.max_positions)
        dtype, device = run.dtype, run.kv_shape.device
        # The next stage is to cache them all.
        returned = body.returned if self._running.next_stage is None else body.count

        def inputs() -> torch.Tensor:
            return decode_states(work.payload, body.count, work.spec, dtype).to(device)

        return Work(
            work.owner,
            self._running.forward,
            Span(cache, body.cached, body.count, adapter=work.adapter),
            inputs,
            partial(_encode_last, returned=returned, dtype=work.spec.dtype),
            math.inf if body.within_ms is None else _now() + body.within_ms / 1000,
        )

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRY_CHECK_S)
            self._act(self._running.sessions.expire(_now()))
            if self._running.training is not None:
                self._running.training.expire()

    def _readings(self) -> Iterable[Reading]:
        if self._parts is None:
            return
        parts = self._parts
        sessions = parts.sessions
        yield from session_readings(sessions, parts.run.kv_shape.bytes_per_position)
        yield from frame_readings(parts.wires.counts, refused=sessions.counters.refused)
        yield from batcher_readings(parts.batcher)
        yield measures.FAILOVERS.of(self._onward.failovers)
        yield measures.TRAINING_SESSIONS.of(len(parts.carried.training_sessions))


@dataclass(frozen=True, slots=True)
class _Parts:
    """What exists only while the node runs."""

    run: BlockRun
    forward: Forward
    carried: Carried
    watch: SessionWatch
    batcher: Batcher
    wires: Wires
    background: Background
    memberships: Memberships
    # Where sessions go on, if this node is a stage and not the last.
    next_stage: NextStage | None

    @property
    def offer(self) -> Offer:
        return self.carried.offer

    @property
    def sessions(self) -> TrunkSessions:
        return self.carried.sessions

    @property
    def training(self) -> TrunkTraining | None:
        return self.carried.training


def _now() -> float:
    return asyncio.get_running_loop().time()


def _encode_last(
    outputs: Sequence[torch.Tensor], *, returned: int, dtype: WireDtype
) -> list[bytes]:
    """The last `returned` rows of the work's output, as the session's payload."""
    output = joined(outputs)
    return encode_states(output[output.shape[0] - returned :], dtype)
