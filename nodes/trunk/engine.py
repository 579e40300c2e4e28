"""The trunk's share of the model: blocks, adapters and their work on one compute thread."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Final, Self

import torch

from fedsea_mq import __version__
from fedsea_mq.errors import AdapterError, ConfigError, NotRunning
from fedsea_mq.model.attention import Span
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.held_adapters import hold_adapters, open_adapters
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Cut, Part, trunk_blocks
from fedsea_mq.model.parts import BlockRun, load_trunk, split_spans, weight_bytes
from fedsea_mq.model.tensor_shard import TensorShard
from fedsea_mq.protocol.adapter_ref import AdapterRef
from fedsea_mq.protocol.stage import Stage
from fedsea_mq.serving.batcher import Batcher
from fedsea_mq.serving.compute_thread import compute_thread
from fedsea_mq.serving.scheduler import StepLimits
from fedsea_mq.settings import Settings
from fedsea_mq.tensor_parallel.rendezvous import Introduction
from fedsea_mq.training.trunk_compute import TrunkCompute
from nodes.trunk.ranks import Ranks
from nodes.trunk.training import check_trainable, trunk_compute

# Of what states are sent in.
_WIDEST_ELEMENT_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Offer:
    """What the checkpoint says of the trunk, and the adapters that it holds."""

    fingerprint: str
    cut: Cut
    hidden: int
    max_positions: int
    adapters: Sequence[AdapterRef]
    stage: Stage | None = None

    @property
    def next_block(self) -> int | None:
        """The block that sessions go on at, at another node; None if this one ends the trunk."""
        return None if self.stage is None or self.stage.is_last else self.stage.stop

    @property
    def depth(self) -> int:
        """Steps of a round that are to be under way in the chain; 1 if there is none."""
        return 1 if self.stage is None else self.stage.depth

    @property
    def kept_bytes_per_position(self) -> int:
        """What is kept of a position to bring another next stage up to date, at most."""
        return 0 if self.next_block is None else _WIDEST_ELEMENT_BYTES * self.hidden

    @property
    def adapter_names(self) -> Sequence[str]:
        """The names of the adapters, in the order in which they were opened."""
        return [adapter.name for adapter in self.adapters]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read from the checkpoint; `training` if the node takes part in a run."""

    run: BlockRun
    offer: Offer
    training: TrunkCompute | None


class TrunkEngine:
    """Loads on entry, off the loop; then batches the blocks' work of all sessions.

    `ranks` are the others that compute with it, if the settings say so.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._stack = AsyncExitStack()
        self._loaded: Loaded | None = None
        self.batcher: Batcher
        self.ranks: Ranks | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            executor = await stack.enter_async_context(
                compute_thread(f"{self._name} compute", lambda: self._is_stuck)
            )
            trunk = self._settings.trunk
            if trunk.tensor_parallel > 1:
                self.ranks = await stack.enter_async_context(Ranks(self._settings))
                stack.push_async_callback(self._dismiss, executor)
            self._loaded = await loop.run_in_executor(executor, self._load)
            batcher = Batcher(
                executor,
                StepLimits(trunk.step_positions),
                max_wait_s=trunk.max_wait_ms / 1000,
                patience_s=trunk.step_timeout_s,
                depth=self._loaded.offer.depth,
            )
            self.batcher = await stack.enter_async_context(batcher)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.__aexit__(None, None, None)
        self._loaded = self.ranks = None

    async def watch(self) -> None:
        """Return when the compute thread stops.

        Raises what `Batcher.watch` raises and, in a group, what `Ranks.watch` does.
        """
        if self.ranks is None:
            await self.batcher.watch()
            return
        async with asyncio.TaskGroup() as tasks:
            ranks = tasks.create_task(self.ranks.watch(self.batcher))
            await self.batcher.watch()
            ranks.cancel()

    def _load(self) -> Loaded:
        loaded = load(self._settings)
        if self.ranks is None:
            return loaded
        own = introduction(self._settings, loaded)
        return replace(loaded, run=self.ranks.lead(loaded.run, own, loaded.offer.adapter_names))

    async def _dismiss(self, executor: Executor) -> None:
        if self.ranks is not None and not self._is_stuck:
            if self._loaded is None:
                self.ranks.abandon()
            await asyncio.get_running_loop().run_in_executor(executor, self.ranks.dismiss)

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
    """Read the trunk, or this rank's share of it, and add the adapters of the settings.

    Raises: `CheckpointError`, `UnsupportedModel`, `IllegalCut`, `AdapterError`, `UnevenShards` or
    `ConfigError`.
    """
    model, trains = settings.model, settings.training.run is not None
    if trains:
        check_trainable(settings)
    if settings.trunk.stages > 1 and settings.trunk.blocks is None:
        raise ConfigError(
            "trunk.stages is for `fedsea up`: a node of its own says which blocks it has, as with "
            f"trunk.blocks=1/{settings.trunk.stages}"
        )
    cut = Cut(model.head_blocks, model.tail_blocks)
    checkpoint = Checkpoint.open(model.path)
    shard = shard_of(settings)
    numerics = replace(Numerics.of(model), trains=trains, device=_device(model.device, shard))
    whole = cut.blocks(Part.TRUNK, checkpoint.blocks)
    own = trunk_blocks(cut, checkpoint.blocks, settings.trunk.blocks)
    run = load_trunk(checkpoint, cut, numerics, own, shard)
    offer = Offer(
        checkpoint.fingerprint(cut),
        cut,
        checkpoint.hidden,
        checkpoint.max_positions,
        _adapters(run, settings, whole, checkpoint.blocks),
        Stage(own.start, own.stop, whole.start, whole.stop),
    )
    compute = trunk_compute(run, settings, checkpoint) if trains else None
    return Loaded(run, offer, compute)


def shard_of(settings: Settings) -> TensorShard:
    """Which share of each block is this rank's."""
    return TensorShard(settings.trunk.rank, settings.trunk.tensor_parallel)


def introduction(settings: Settings, loaded: Loaded) -> Introduction:
    """What a rank that has loaded its share says to the others.

    They agree if they compute the same blocks of the same model with the same adapters in the same
    numbers, and are of the same version.
    """
    model, offer = settings.model, loaded.offer
    adapters = [(adapter.name, adapter.digest) for adapter in offer.adapters]
    blocks = str(loaded.run.kv_shape.blocks)
    numbers = [model.dtype, model.weights, model.kv_cache]
    said = [
        __version__,
        offer.fingerprint,
        blocks,
        numbers,
        adapters,
        settings.trunk.tensor_parallel,
    ]
    agreement = hashlib.sha256(json.dumps(said).encode()).hexdigest()
    return Introduction(agreement, weight_bytes(loaded.run))


def _device(device: str, shard: TensorShard) -> str:
    """Each rank's own, where the settings name none of several."""
    return f"cuda:{shard.rank}" if shard.ranks > 1 and device == "cuda" else device


def _adapters(run: BlockRun, settings: Settings, trunk: range, total: int) -> Sequence[AdapterRef]:
    """Put the settings' adapters into the blocks, of a trunk of these. Raises `AdapterError`.

    One that is for other stages' blocks alone is held all the same: its sessions come by here.
    """
    opened = open_adapters(settings.trunk.adapters, total)
    for name, one in opened.items():
        if one.of.blocks.isdisjoint(trunk):
            raise AdapterError(f"trunk.adapters.{name}: nothing for any of the trunk's blocks")
    hold_adapters(run, opened, shard_of(settings))
    return [AdapterRef(name, one.of.digest) for name, one in opened.items()]
