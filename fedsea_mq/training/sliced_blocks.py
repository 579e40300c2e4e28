"""The trunk's blocks in training, in slices short enough to come between steps of serving.

A slice takes some whole sequences through one block, forward or backward. Between slices nothing is
under way: a block's graph ends at its inputs, and the backward pass hands the gradient from one
graph to the one before. That is what autograd does inside one graph, so gradients are the same.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from torch import nn

from fedsea_mq.model.grouped_lora import GroupedLora, Segment
from fedsea_mq.model.parts import BlockRun
from fedsea_mq.training.batch import Batch
from fedsea_mq.training.blocks import Rotation, autocast, run_layer
from fedsea_mq.training.settings import TrainingSettings

R = TypeVar("R")
# Work in slices: it yields between them, and returns its result.
Slices = Generator[None, None, R]

# A slice takes sequences of no more positions together, or one that is longer. On one core, larger
# ones are hardly cheaper a position.
SLICE_POSITIONS: Final = 256


def finish(slices: Slices[R]) -> R:
    """All slices in a row, and their result."""
    while True:
        try:
            next(slices)
        except StopIteration as done:
            result: R = done.value
            return result


@dataclass(slots=True)
class _Chunk:
    """Some sequences of a batch on their way through the blocks.

    `states` `[positions, hidden]` are those that entered the next block; later, their gradient.
    """

    batch: Batch
    rotation: Rotation
    states: torch.Tensor
    # Of each block that a gradient will pass: inputs, and outputs unless they are recomputed.
    kept: list[tuple[torch.Tensor, torch.Tensor | None]]


@dataclass(frozen=True, slots=True)
class SlicedPass:
    """A forward pass that waits for its gradient."""

    batch: Batch
    hidden: int
    chunks: list[_Chunk]


class SlicedBlocks:
    """Differentiable, block by block; `grouped` is told whose each sequence is."""

    def __init__(
        self, run: BlockRun, settings: TrainingSettings, grouped: GroupedLora | None
    ) -> None:
        self._run = run
        self._grouped = grouped
        self._autocast = autocast(settings)
        self._recomputes = settings.recomputes

    def forward(
        self, inputs: torch.Tensor, batch: Batch, *, keeps_graph: bool
    ) -> Slices[tuple[torch.Tensor, SlicedPass]]:
        """`[total, hidden]` to `[total, hidden]`, fp32 and of no graph; and the pass for later."""
        chunks = [self._chunk(part, rows) for part, rows in _apart(inputs, batch)]
        for layer in self._run.layers:
            for chunk in chunks:
                self._enter(layer, chunk, keeps_graph)
                yield
        outputs = torch.cat([chunk.states for chunk in chunks])
        return outputs, SlicedPass(batch, inputs.shape[1], chunks)

    def backward(self, waiting: SlicedPass, gradient: torch.Tensor) -> Slices[torch.Tensor]:
        """Add to the adapters' gradients; give that by the inputs, `[total, hidden]`."""
        totals = [chunk.batch.total for chunk in waiting.chunks]
        for chunk, rows in zip(waiting.chunks, torch.split(gradient, totals), strict=True):
            chunk.states = rows
        for layer in reversed(self._run.layers):
            for chunk in waiting.chunks:
                self._leave(layer, chunk)
                yield
        return torch.cat([chunk.states for chunk in waiting.chunks])

    def _chunk(self, batch: Batch, rows: torch.Tensor) -> _Chunk:
        positions = batch.positions(rows.device)[None]
        return _Chunk(batch, self._run.rotary(rows[None], positions), rows.detach(), [])

    def _enter(self, layer: nn.Module, chunk: _Chunk, keeps_graph: bool) -> None:
        inputs = chunk.states.requires_grad_(keeps_graph)
        with torch.set_grad_enabled(keeps_graph and not self._recomputes):
            outputs = self._through(layer, chunk, inputs)
        if keeps_graph:
            chunk.kept.append((inputs, None if self._recomputes else outputs))
        chunk.states = outputs.detach()

    def _leave(self, layer: nn.Module, chunk: _Chunk) -> None:
        inputs, outputs = chunk.kept.pop()
        if outputs is None:
            outputs = self._through(layer, chunk, inputs)
        torch.autograd.backward(outputs, chunk.states.to(outputs))
        assert inputs.grad is not None
        chunk.states = inputs.grad

    def _through(self, layer: nn.Module, chunk: _Chunk, states: torch.Tensor) -> torch.Tensor:
        # Told in each slice anew: serving, and other passes, come in between.
        told = (
            nullcontext() if self._grouped is None else self._grouped.told(_segments(chunk.batch))
        )
        with told, self._autocast():
            return run_layer(layer, chunk.batch.lengths, chunk.rotation, states[None])[0]


def _apart(inputs: torch.Tensor, batch: Batch) -> Iterator[tuple[Batch, torch.Tensor]]:
    """A batch as batches of no more than a slice's positions, and their rows of `inputs`."""
    start = row = 0
    while start < len(batch.lengths):
        stop, positions = start + 1, batch.lengths[start]
        while stop < len(batch.lengths) and positions + batch.lengths[stop] <= SLICE_POSITIONS:
            positions += batch.lengths[stop]
            stop += 1
        part = Batch(batch.lengths[start:stop], batch.adapters[start:stop], batch.seeds[start:stop])
        yield part, inputs[row : row + positions]
        start, row = stop, row + positions


def _segments(batch: Batch) -> list[Segment]:
    seeds = batch.seeds or (None,) * len(batch.lengths)
    named = zip(batch.adapters, batch.lengths, seeds, strict=True)
    return [Segment(adapter, length, seed) for adapter, length, seed in named]
