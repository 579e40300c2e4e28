"""Engines of client and trunk nodes that run the chain model in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final, Self

import torch

from fedsea_mq.errors import CheckpointError
from fedsea_mq.model.attention import Span
from fedsea_mq.model.partition import Cut
from fedsea_mq.privacy.noise import NoiseSource
from fedsea_mq.serving.scheduler import StepLimits
from fedsea_mq.settings import Settings
from fedsea_mq.simulation.chain_model import (
    FINGERPRINT,
    HIDDEN,
    MAX_POSITIONS,
    SPEC,
    VOCAB,
    ChainCache,
    ChainModel,
    part_like,
)
from fedsea_mq.simulation.compute import VirtualBatcher
from nodes.client.engine import ClientEngine
from nodes.client.engine import Loaded as LoadedClient
from nodes.trunk.engine import Loaded as LoadedTrunk
from nodes.trunk.engine import Offer, TrunkEngine

# A megabyte, the least that settings can say, holds so many positions.
KV_BYTES: Final = 1 << 13


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a step takes: seconds, and seconds a position."""

    fixed_s: float = 0.002
    each_s: float = 0.0002


class ChainTrunkEngine(TrunkEngine):
    """The middle of the chain."""

    def __init__(self, settings: Settings, model: ChainModel, pace: Pace) -> None:
        super().__init__(settings, "trunk")
        self._model = model
        self._pace = pace
        limits = StepLimits(settings.trunk.step_positions)
        self._virtual = VirtualBatcher(limits, max_wait_s=settings.trunk.max_wait_ms / 1000)

    async def __aenter__(self) -> Self:
        cut = Cut(1, self._model.tail_blocks)
        offer = Offer(FINGERPRINT, cut, HIDDEN, MAX_POSITIONS, [])
        self._loaded = LoadedTrunk(part_like(1, KV_BYTES), offer, None)
        self.batcher = await self._virtual.__aenter__()
        return self

    async def __aexit__(self, *reason: object) -> None:
        await self._virtual.__aexit__(None, None, None)
        self._loaded = None

    def run_blocks(self, states: torch.Tensor, spans: Sequence[Span]) -> Sequence[torch.Tensor]:
        """One pass of a step."""
        self._virtual.spend(self._pace.fixed_s + self._pace.each_s * states.shape[0])
        return self._model.trunk(states, spans)


class _ChainCheckpoint(SimpleNamespace):
    """Token ids, and no text."""

    @property
    def tokenizer(self) -> None:
        """None is there."""
        raise CheckpointError("the chain model has no tokenizer")


class ChainClientEngine(ClientEngine):
    """Both ends of the chain."""

    def __init__(
        self, settings: Settings, model: ChainModel, entropy: Callable[[int], bytes]
    ) -> None:
        super().__init__(settings)
        self._model = model
        self._entropy = entropy
        self._virtual = VirtualBatcher(StepLimits(settings.client.step_positions))

    async def __aenter__(self) -> Self:
        checkpoint: Any = _ChainCheckpoint(
            config=SimpleNamespace(vocab_size=VOCAB),
            max_positions=MAX_POSITIONS,
            eos_token_ids=frozenset(),
        )
        head: Any = SimpleNamespace(run=part_like(1, KV_BYTES))
        tail: Any = SimpleNamespace(run=part_like(self._model.tail_blocks, KV_BYTES))
        noise = NoiseSource(0.0, FINGERPRINT, self._entropy)
        self._loaded = LoadedClient(checkpoint, FINGERPRINT, head, tail, 1.0, noise, SPEC, {})
        self.batcher = await self._virtual.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._loaded = None
        await self._virtual.__aexit__(None, None, None)

    def run_head(self, ids: torch.Tensor, spans: Sequence[Span]) -> Sequence[torch.Tensor]:
        """The start of the chain."""
        return self._model.head(ids, spans)

    def run_tail(self, states: torch.Tensor, spans: Sequence[Span]) -> Sequence[torch.Tensor]:
        """Its end."""
        return self._model.tail(states, spans)

    def new_caches(self, positions: int) -> Any:
        """Empty caches of head and tail."""
        return ChainCache(), ChainCache()
