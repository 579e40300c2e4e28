"""The blocks of one part in training: packed batches of whole sequences, no KV caches."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fedsea_mq.model.grouped_lora import GroupedLora, Segment
from fedsea_mq.model.packed_attention import PackedLayout
from fedsea_mq.model.parts import BlockRun
from fedsea_mq.training.batch import Batch
from fedsea_mq.training.seeds import DropoutStream
from fedsea_mq.training.settings import TrainingSettings


class TrainedBlocks:
    """Differentiable; `grouped` is told whose each sequence is, where several adapters are held."""

    def __init__(
        self,
        run: BlockRun,
        settings: TrainingSettings,
        dropout: DropoutStream,
        grouped: GroupedLora | None = None,
    ) -> None:
        self.dropout = dropout
        self.autocast = partial(
            torch.autocast, settings.device, torch.bfloat16, enabled=settings.dtype == "bf16"
        )
        self._run = run
        self._recomputes = settings.recomputes
        self._grouped = grouped

    def __call__(self, inputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """`[total, hidden]` to `[total, hidden]`, fp32."""
        if not self._run.layers:
            return inputs
        packed = inputs[None]
        with self.dropout.next_pass(), self.autocast():
            rotation = self._run.rotary(packed, batch.positions(inputs.device)[None])
            for layer in self._run.layers:
                step = partial(_run_layer, layer, batch, rotation, self._grouped)
                if self._recomputes:
                    # The graph holds the states between layers only.
                    packed = checkpoint(step, packed, use_reentrant=False)
                else:
                    packed = step(packed)
        return packed[0]


def _run_layer(
    layer: nn.Module,
    batch: Batch,
    rotation: tuple[torch.Tensor, torch.Tensor],
    grouped: GroupedLora | None,
    packed: torch.Tensor,
) -> torch.Tensor:
    # Told for each layer anew: one that is recomputed runs after other batches have passed.
    with nullcontext() if grouped is None else grouped.told(_segments(batch)):
        layout = PackedLayout(batch.lengths)
        return cast(torch.Tensor, layer(packed, position_embeddings=rotation, layout=layout))


def _segments(batch: Batch) -> list[Segment]:
    named = zip(batch.adapters, batch.lengths, strict=True)
    return [Segment(name, length) for name, length in named]
