"""One split session, seen from the client: its caches, what it sent, and how it comes back."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self, TypeVar

import torch

from fedsea_mq.errors import (
    ContextOverflow,
    InvalidPrompt,
    MalformedFrame,
    NotRunning,
    PositionConflict,
    PositionGap,
    RemoteError,
    SessionLost,
    SessionUnknown,
)
from fedsea_mq.log import get_logger
from fedsea_mq.model.attention import Span
from fedsea_mq.model.wire_states import decode_states, encode_states
from fedsea_mq.protocol.envelope import SESSION_BYTES, Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Accept, Extend, Nothing, Open, Result
from fedsea_mq.protocol.positions import SentLog
from fedsea_mq.serving.background import Background
from fedsea_mq.serving.batcher import Work, joined
from fedsea_mq.serving.scheduler import Owner
from fedsea_mq.telemetry.trace import TraceContext, trace_fields
from fedsea_mq.transport.direct_links import DirectLinks, DirectPath
from fedsea_mq.transport.requests import Requests, Traffic
from nodes.client.engine import ClientEngine
from nodes.client.metrics import ClientMetrics

_log = get_logger(__name__)
T = TypeVar("T")
_RECOVERIES: Final = 8
# How long to wait for a frame in flight before asking again.
_IN_FLIGHT_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Wires:
    """How the sessions of a client node reach the broker and their trunk nodes."""

    requests: Requests
    direct: DirectLinks
    background: Background
    metrics: ClientMetrics
    # Where session ids come from.
    entropy: Callable[[int], bytes] = secrets.token_bytes


class ClientSession:
    """Up to `max_positions` positions cached on three parts. Use with `async with`.

    All three run with the `adapter` of this name. Raises `AdapterError` if the client has none.
    `trace` is the request that it is for: the broker and the trunk node are told.

    One call at a time: `advance` and `roll_back` are steps of a single sequence.
    """

    def __init__(
        self,
        engine: ClientEngine,
        wires: Wires,
        max_positions: int,
        adapter: str | None,
        trace: TraceContext,
    ) -> None:
        self._engine = engine
        self._wires = wires
        self._max_positions = max_positions
        self._trace = trace.on_wire
        self._loaded = engine.loaded
        self._adapter = self._loaded.adapter(adapter)
        self._head_cache, self._tail_cache = engine.new_caches(max_positions)
        self._log = SentLog(self._loaded.spec.part_sizes(1))
        self._chain = self._loaded.noise.chain(self._adapter.head)
        self._accept: Accept | None = None
        self._path: DirectPath | None = None
        self._id = b""
        # To the client's own batcher every session is as good as another.
        self._owner = Owner(client=b"", session=wires.entropy(SESSION_BYTES))
        self._closed = False
        self._renewing: asyncio.Task[None] | None = None
        # Whether the trunk may hold positions beyond `cached`.
        self._rewinds = False
        # Whether no trunk holds it, or one that has yet to be brought up to date.
        self._lost = False
        self.cached = 0
        self.recoveries = 0
        self.traffic = Traffic()

    def known(self, tokens: Sequence[int]) -> int:
        """How many of `tokens`, from the first position on, are cached already."""
        return min(self.cached, self._log.known(0, tokens))

    @property
    def node(self) -> str:
        """The trunk node that holds the session."""
        return self._terms.node

    @property
    def frame_positions(self) -> int:
        """Positions that one frame may have."""
        return self._terms.max_frame_positions

    @property
    def _terms(self) -> Accept:
        if self._accept is None or self._closed:
            raise NotRunning("the session is not open")
        return self._accept

    async def __aenter__(self) -> Self:
        await self._open_anywhere()
        self._wires.metrics.sessions += 1
        self._renewing = self._wires.background.start(self._renew(), "fedsea lease")
        return self

    async def __aexit__(self, *_: object) -> None:
        # Nothing is awaited here, so that a cancelled generation frees the trunk's KV at once.
        self._closed = True
        self._wires.metrics.sessions -= 1
        if self._renewing is not None:
            self._renewing.cancel()
        self._leave_path()
        self._engine.batcher.session_left(self._owner.session)
        self._tell_closed()

    def _leave_path(self) -> None:
        if self._path is not None:
            self._path.close()
            self._path = None

    def _tell_closed(self) -> None:
        with suppress(NotRunning):  # then the lease frees it
            self._wires.requests.close(self._id)

    async def _open_anywhere(self) -> None:
        """Open on the node that the broker names, and on another where that one is just gone."""
        for _ in range(_RECOVERIES):
            with suppress(SessionLost, SessionUnknown):
                return await self._open()
        raise SessionLost(f"the node of a session was gone {_RECOVERIES} times as it opened")

    async def _open(self) -> None:
        """Open under a new id, so that nothing of an older session can be mistaken for this one."""
        self._leave_path()
        self._wires.requests.forget(self._id)
        self._id = self._wires.entropy(SESSION_BYTES)
        asked = Open(
            fingerprint=self._loaded.fingerprint,
            max_positions=self._max_positions,
            dtype=self._loaded.spec.dtype,
            adapter=self._adapter.trunk,
            trace=self._trace,
        )
        try:
            reply = await self._wires.requests.ask(
                Kind.OPEN, asked, session=self._id, traffic=self.traffic, trace=self._trace
            )
            self._accept = reply.body(Accept)
            _log.debug("session opened", node=self.node, **trace_fields(self._trace))
            self._path = await self._wires.direct.path(self._id, self._accept)
        except BaseException:
            self._tell_closed()
            raise

    async def advance(
        self, tokens: Sequence[int], read: Callable[[torch.Tensor], T], rows: int = 1
    ) -> T:
        """Cache `tokens` on all three parts and return `read(logits)` of the last `rows` of them.

        `read` runs on the compute thread with fp32 logits `[rows, vocab]`, of at most as many rows
        as a frame has positions. A lost node is replaced and brought up to date with the very bytes
        that were sent before.

        Raises:
            InvalidPrompt: no tokens, or one outside the vocabulary.
            ContextOverflow: more positions than the session was opened for.
            RemoteError: the trunk refused, or no node could take the session over.

        If it is cancelled or raises, whole frames before the last may be cached, and nothing of
        the others: `cached` says how far it came, and the next call goes on from there.
        """
        self._check(tokens)
        chunk = self._terms.max_frame_positions
        # The last frame is as long as may be: all rows that are read are of it.
        first = max(0, len(tokens) - chunk)
        for start in range(0, first, chunk):
            await self._advance_chunk(tokens[start : min(start + chunk, first)], _nothing, 1)
        last = tokens[first:]
        return await self._advance_chunk(last, lambda logits: read(logits[-rows:]), rows)

    def _check(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise InvalidPrompt("no tokens to advance by")
        check_tokens(tokens, self._loaded.vocab)
        if self.cached + len(tokens) > self._max_positions:
            raise ContextOverflow(
                f"{self.cached + len(tokens)} positions, the session was opened for "
                f"{self._max_positions}"
            )

    async def _advance_chunk(
        self, tokens: Sequence[int], read: Callable[[torch.Tensor], T], rows: int
    ) -> T:
        try:
            await self._run_head(tokens)
            outputs = await self._run_trunk(len(tokens), self._returned(len(tokens), rows))
            result = await self._run_tail(len(tokens), rows, outputs, read)
        except BaseException:
            # What was sent is cached there by now, or will be soon.
            self._rewinds = True
            raise
        self.cached += len(tokens)
        return result

    def _returned(self, count: int, rows: int) -> int:
        """Outputs wanted of `count` positions: all, if the tail caches them, or what is read."""
        return count if len(self._loaded.tail.run.layers) else rows

    async def _run_head(self, tokens: Sequence[int]) -> None:
        """Head, noise and encoding; the log then has what must be sent for these positions."""
        loaded, start = self._loaded, self.cached
        digests = self._chain.extend(start, tokens)

        def finish(outputs: Sequence[torch.Tensor]) -> list[bytes]:
            states = loaded.noise.add(joined(outputs), digests)
            return encode_states(states, loaded.spec.dtype)

        ids = torch.tensor(list(tokens), device=self._head_device)
        span = Span(self._head_cache, start, len(tokens), adapter=self._adapter.name)
        work = Work(self._owner, self._engine.run_head, span, lambda: ids, finish)
        fresh = await self._engine.batcher.run(work)
        self._log.record(start, tokens, fresh)

    @property
    def _head_device(self) -> str:
        return self._loaded.head.run.kv_shape.device

    async def _run_trunk(self, count: int, returned: int) -> list[bytes]:
        for _ in range(_RECOVERIES):
            try:
                if self._lost:
                    await self._recover()
                return await self._send(self.cached, count, returned)
            except (SessionLost, SessionUnknown, PositionGap):
                # A gap: the node holds less than it has said. A session that it let go of was
                # opened anew by a copy of OPEN that came late, and is empty.
                self._lost = True
        raise SessionLost(f"the session was lost {_RECOVERIES} times in one step")

    async def _send(self, start: int, count: int, returned: int) -> list[bytes]:
        """Send `count` logged positions in frames that the node takes; the last outputs of them."""
        frame, end = self._terms.max_frame_positions, start + count
        outputs: list[list[bytes]] = []
        for at in range(start, end, frame):
            after = min(at + frame, end)
            wanted = min(after - at, max(0, after - (end - returned)))
            outputs.append(await self._extend(at, after - at, wanted))
        return [b"".join(parts) for parts in zip(*filter(None, outputs), strict=True)]

    async def _extend(self, cached: int, count: int, returned: int) -> list[bytes]:
        within_ms = round(1000 * self._wires.requests.give_up_s)
        body = Extend(cached, count, returned, self._rewinds, within_ms)
        reply = await self._ask(body)
        if reply.envelope.kind is not Kind.RESULT:
            raise MalformedFrame(f"a {reply.envelope.kind.name} frame in reply to an extend")
        result = reply.body(Result)
        if (result.cached, result.returned) != (cached + count, returned):
            raise MalformedFrame(
                f"result of {result.returned} outputs up to {result.cached}, "
                f"expected {returned} up to {cached + count}"
            )
        self._loaded.spec.check(reply.payload, returned)
        self._rewinds = False
        return list(reply.payload)

    async def _ask(self, body: Extend) -> Frame:
        """The answer to an extend frame, which waits for one before it that was given up."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._wires.requests.give_up_s
        while True:
            try:
                return await self._wires.requests.ask(
                    Kind.EXTEND,
                    body,
                    session=self._id,
                    payload=self._log.payload(body.cached, body.count),
                    traffic=self.traffic,
                    direct=None if self._path is None else await self._path.settled(),
                    trace=self._trace,
                )
            except PositionConflict:
                # A frame that rewinds conflicts only with one that is still being computed.
                if not body.rewinds or loop.time() > give_up_at:
                    raise
            await asyncio.sleep(_IN_FLIGHT_S)

    async def _recover(self) -> None:
        """Take the session to a node that is alive, by replaying the bytes already sent."""
        self.recoveries += 1
        self._wires.metrics.failovers += 1
        _log.info("session lost; replaying it elsewhere", **trace_fields(self._trace))
        self._tell_closed()
        await self._open()
        self._rewinds = False
        await self._send(0, self.cached, 0)
        self._lost = False

    async def _run_tail(
        self,
        count: int,
        rows: int,
        outputs: list[bytes],
        read: Callable[[torch.Tensor], T],
    ) -> T:
        run, returned = self._loaded.tail.run, self._returned(count, rows)

        def inputs() -> torch.Tensor:
            states = decode_states(outputs, returned, self._loaded.spec, run.dtype)
            if not bool(states.isfinite().all()):
                raise MalformedFrame("outputs that are not finite")
            return states.to(run.kv_shape.device)

        start = self.cached + count - returned
        work = Work(
            self._owner,
            self._engine.run_tail,
            Span(self._tail_cache, start, returned, min(rows, returned), self._adapter.name),
            inputs,
            lambda outputs: read(joined(outputs)),
        )
        return await self._engine.batcher.run(work)

    def roll_back(self, cached: int) -> None:
        """Forget every position from `cached` on; the trunk does so with the next advance."""
        if cached < self.cached:
            self.cached, self._rewinds = cached, True

    async def _renew(self) -> None:
        """Keep the lease of a session that nobody advances for a while."""
        while True:
            await asyncio.sleep(self._terms.lease_ms / 3000)
            if self._path is not None:
                self._path.try_again()
            # By the broker, which so knows of a session whose states do not pass it.
            with suppress(RemoteError):  # a lost session comes back when it is next advanced
                await self._wires.requests.ask(
                    Kind.RENEW, Nothing(), session=self._id, trace=self._trace
                )


def check_tokens(tokens: Sequence[int], vocab: int) -> None:
    """Raise `InvalidPrompt` for a token id outside the vocabulary."""
    if not all(0 <= token < vocab for token in tokens):
        raise InvalidPrompt(f"a token id is outside the vocabulary of {vocab}")


def _nothing(_: torch.Tensor) -> None:
    return None
