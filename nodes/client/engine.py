"""The client's share of the model: head, noise and tail on one compute thread."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Self

import torch

from fedsea_mq.errors import AdapterError, NotRunning
from fedsea_mq.model.attention import Span
from fedsea_mq.model.calibration import calibration_states
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.kv_cache import KVCache
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Cut
from fedsea_mq.model.parts import Head, Tail, load_client, split_spans, weight_bytes
from fedsea_mq.privacy.noise import NoiseSource, noise_source, typical_rms
from fedsea_mq.protocol.payload import PayloadSpec
from fedsea_mq.serving.batcher import Batcher
from fedsea_mq.serving.compute_thread import compute_thread
from fedsea_mq.serving.scheduler import StepLimits
from fedsea_mq.settings import Settings, Speculation
from nodes.client.adapters import ClientAdapter, load_adapters
from nodes.client.draft_model import Drafter, DraftModel
from nodes.client.early_exit import EarlyExit


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read from the checkpoint, and the noise that follows from it."""

    checkpoint: Checkpoint
    fingerprint: str
    head: Head
    tail: Tail
    head_rms: float
    noise: NoiseSource
    spec: PayloadSpec
    adapters: Mapping[str, ClientAdapter]

    def adapter(self, name: str | None) -> ClientAdapter:
        """What a session with this adapter, or without one, runs with. Raises `AdapterError`."""
        if name is None:
            return ClientAdapter()
        if name not in self.adapters:
            held = ", ".join(sorted(self.adapters)) or "none"
            raise AdapterError(f"adapter {name}: not one of client.adapters; there are: {held}")
        return self.adapters[name]

    @property
    def max_positions(self) -> int:
        """The model's own bound on a session."""
        return self.checkpoint.max_positions

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the weights that the client holds, as it holds them; a tied one once."""
        return weight_bytes(self.head, self.tail)

    @property
    def vocab(self) -> int:
        """Size of the vocabulary."""
        return int(self.checkpoint.config.vocab_size)


class ClientEngine:
    """Loads on entry, off the loop; then batches the head and tail work of all sessions."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._loaded: Loaded | None = None
        self.batcher: Batcher
        self.drafter: Drafter | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            executor = await stack.enter_async_context(compute_thread("fedsea client compute"))
            loaded = await loop.run_in_executor(executor, load, self._settings)
            self.drafter = await loop.run_in_executor(executor, self._load_drafter, loaded)
            limits = StepLimits(self._settings.client.step_positions)
            self.batcher = await stack.enter_async_context(Batcher(executor, limits))
            self._loaded = loaded
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._loaded = None
        await self._stack.__aexit__(None, None, None)

    def _load_drafter(self, loaded: Loaded) -> Drafter | None:
        client = self._settings.client
        match client.speculation:
            case Speculation.MODEL:
                return DraftModel(client.draft_model, self._settings.model, loaded.vocab)
            case Speculation.EARLY_EXIT:
                return EarlyExit(loaded.checkpoint, loaded.head, loaded.tail)
            case _:
                return None

    def run_head(self, ids: torch.Tensor, spans: Sequence[Span]) -> Sequence[torch.Tensor]:
        """Token ids of many sessions to each one's hidden states `[count, hidden]`."""
        return split_spans(self.loaded.head(ids, spans), spans)

    def run_tail(self, states: torch.Tensor, spans: Sequence[Span]) -> Sequence[torch.Tensor]:
        """The trunk's outputs of many sessions to the logits that `Tail.logits` gives each."""
        return self.loaded.tail.logits(states, spans)

    @property
    def loaded(self) -> Loaded:
        """Model, noise and wire contract. Raises `NotRunning` outside `async with`."""
        if self._loaded is None:
            raise NotRunning("the client node is not running")
        return self._loaded

    def new_caches(self, positions: int) -> tuple[KVCache, KVCache]:
        """Empty head and tail caches for one session."""
        loaded = self.loaded
        return loaded.head.run.new_cache(positions), loaded.tail.run.new_cache(positions)


def load(settings: Settings) -> Loaded:
    """Read head and tail, set the noise from the head's output, and add the adapters."""
    model = settings.model
    cut = Cut(model.head_blocks, model.tail_blocks)
    checkpoint = Checkpoint.open(model.path)
    fingerprint = checkpoint.fingerprint(cut)
    head, tail = load_client(checkpoint, cut, Numerics.of(model))
    rms = typical_rms(calibration_states(checkpoint, head))
    noise = noise_source(settings.noise, rms, checkpoint.hidden, fingerprint)
    spec = PayloadSpec(settings.client.wire_dtype, checkpoint.hidden)
    adapters = load_adapters(settings.client.adapters, checkpoint, cut, head, tail)
    return Loaded(checkpoint, fingerprint, head, tail, rms, noise, spec, adapters)
