"""The trunk's share of the model: blocks, adapters and their work on one compute thread."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Self

import torch

from fedsea_mq.errors import AdapterError, NotRunning
from fedsea_mq.model.attention import Span
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.held_adapters import hold_adapters, open_adapters
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Cut
from fedsea_mq.model.parts import BlockRun, load_trunk, split_spans
from fedsea_mq.protocol.adapter_ref import AdapterRef
from fedsea_mq.serving.batcher import Batcher
from fedsea_mq.serving.compute_thread import compute_thread
from fedsea_mq.serving.scheduler import StepLimits
from fedsea_mq.settings import Settings
from fedsea_mq.training.trunk_compute import TrunkCompute
from nodes.trunk.training import check_trainable, trunk_compute


@dataclass(frozen=True, slots=True)
class Offer:
    """What the checkpoint says of the trunk, and the adapters that it holds."""

    fingerprint: str
    cut: Cut
    hidden: int
    max_positions: int
    adapters: Sequence[AdapterRef]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read from the checkpoint; `training` if the node takes part in a run."""

    run: BlockRun
    offer: Offer
    training: TrunkCompute | None


class TrunkEngine:
    """Loads on entry, off the loop; then batches the blocks' work of all sessions."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._stack = AsyncExitStack()
        self._loaded: Loaded | None = None
        self.batcher: Batcher

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            executor = await stack.enter_async_context(
                compute_thread(f"{self._name} compute", lambda: self._is_stuck)
            )
            self._loaded = await loop.run_in_executor(executor, load, self._settings)
            trunk = self._settings.trunk
            batcher = Batcher(
                executor,
                StepLimits(trunk.step_positions),
                max_wait_s=trunk.max_wait_ms / 1000,
                patience_s=trunk.step_timeout_s,
            )
            self.batcher = await stack.enter_async_context(batcher)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.__aexit__(None, None, None)
        self._loaded = None

    @property
    def _is_stuck(self) -> bool:
        return self._loaded is not None and self.batcher.is_stuck

    @property
    def loaded(self) -> Loaded:
        """Blocks and what they are of. Raises `NotRunning` outside `async with`."""
        if self._loaded is None:
            raise NotRunning(f"trunk node {self._name} is not running")
        return self._loaded

    def run_blocks(self, states: torch.Tensor, spans: Sequence[Span]) -> Sequence[torch.Tensor]:
        """`[total, hidden]` states of many sessions to each one's outputs `[count, hidden]`."""
        return split_spans(self.loaded.run(states, spans), spans)


def load(settings: Settings) -> Loaded:
    """Read the trunk, and add the adapters of the settings.

    Raises: `CheckpointError`, `UnsupportedModel`, `IllegalCut`, `AdapterError` or `ConfigError`.
    """
    model, trains = settings.model, settings.training.run is not None
    if trains:
        check_trainable(settings)
    cut = Cut(model.head_blocks, model.tail_blocks)
    checkpoint = Checkpoint.open(model.path)
    run = load_trunk(checkpoint, cut, replace(Numerics.of(model), trains=trains))
    offer = Offer(
        checkpoint.fingerprint(cut),
        cut,
        checkpoint.hidden,
        checkpoint.max_positions,
        _adapters(run, settings, checkpoint.blocks),
    )
    compute = trunk_compute(run, settings, checkpoint) if trains else None
    return Loaded(run, offer, compute)


def _adapters(run: BlockRun, settings: Settings, total: int) -> Sequence[AdapterRef]:
    """Put the settings' adapters into the blocks. Raises `AdapterError`."""
    opened = open_adapters(settings.trunk.adapters, total)
    for name, found in hold_adapters(run, opened).items():
        if not found:
            raise AdapterError(f"trunk.adapters.{name}: nothing for any of the trunk's blocks")
    return [AdapterRef(name, one.of.digest) for name, one in opened.items()]
