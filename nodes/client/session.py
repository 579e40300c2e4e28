"""One split session, seen from the client: its caches, what it sent, and how it comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self, TypeVar

import torch

from fedsea_mq.errors import ContextOverflow, InvalidPrompt, MalformedFrame
from fedsea_mq.model.attention import Span
from fedsea_mq.model.wire_states import decode_states, encode_states
from fedsea_mq.protocol.envelope import SESSION_BYTES
from fedsea_mq.protocol.messages import Open
from fedsea_mq.protocol.positions import SentLog
from fedsea_mq.serving.scheduler import Owner
from fedsea_mq.serving.work import Work, joined
from fedsea_mq.telemetry.trace import TraceContext
from fedsea_mq.transport.requests import Traffic
from nodes.client.engine import ClientEngine
from nodes.remote_session import RemoteSession
from nodes.session_wires import SessionWires

T = TypeVar("T")


class ClientSession:
    """Up to `max_positions` positions cached on three parts. Use with `async with`.

    All three run with the `adapter` of this name. Raises `AdapterError` if the client has none.
    `trace` is the request that it is for: the broker and the trunk node are told.

    One call at a time: `advance` and `roll_back` are steps of a single sequence.
    """

    def __init__(
        self,
        engine: ClientEngine,
        wires: SessionWires,
        max_positions: int,
        adapter: str | None,
        trace: TraceContext,
    ) -> None:
        self._engine = engine
        self._max_positions = max_positions
        self._loaded = engine.loaded
        self._adapter = self._loaded.adapter(adapter)
        self._head_cache, self._tail_cache = engine.new_caches(max_positions)
        self._log = SentLog(self._loaded.spec.part_sizes(1))
        self._chain = self._loaded.noise.chain(self._adapter.head)
        asked = Open(
            fingerprint=self._loaded.fingerprint,
            max_positions=max_positions,
            dtype=self._loaded.spec.dtype,
            adapter=self._adapter.trunk,
            trace=trace.on_wire,
        )
        self._trunk = RemoteSession(wires, asked, self._loaded.spec, self._log.payload)
        # To the client's own batcher every session is as good as another.
        self._owner = Owner(client=b"", session=wires.entropy(SESSION_BYTES))
        self.cached = 0

    def known(self, tokens: Sequence[int]) -> int:
        """How many of `tokens`, from the first position on, are cached already."""
        return min(self.cached, self._log.known(0, tokens))

    @property
    def node(self) -> str:
        """The trunk node that holds the session."""
        return self._trunk.terms.node

    @property
    def frame_positions(self) -> int:
        """Positions that one frame may have."""
        return self._trunk.terms.max_frame_positions

    @property
    def recoveries(self) -> int:
        """How often its trunk node was lost, and replaced."""
        return self._trunk.recoveries

    @property
    def traffic(self) -> Traffic:
        """What the session has sent and received."""
        return self._trunk.traffic

    @traffic.setter
    def traffic(self, counted: Traffic) -> None:
        self._trunk.traffic = counted

    async def __aenter__(self) -> Self:
        await self._trunk.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        # Nothing is awaited here, so that a cancelled generation frees the trunk's KV at once.
        self._engine.batcher.session_left(self._owner.session)
        self._trunk.close()

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
        chunk = self.frame_positions
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
            returned = self._returned(len(tokens), rows)
            outputs = await self._trunk.extend(self.cached, len(tokens), returned)
            result = await self._run_tail(len(tokens), rows, outputs, read)
        except BaseException:
            # What was sent is cached there by now, or will be soon.
            self._trunk.rewinds = True
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
            self.cached, self._trunk.rewinds = cached, True


def check_tokens(tokens: Sequence[int], vocab: int) -> None:
    """Raise `InvalidPrompt` for a token id outside the vocabulary."""
    if not all(0 <= token < vocab for token in tokens):
        raise InvalidPrompt(f"a token id is outside the vocabulary of {vocab}")


def _nothing(_: torch.Tensor) -> None:
    return None
