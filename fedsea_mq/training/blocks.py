"""The blocks of head or tail in training: packed batches of whole sequences, no KV caches."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fedsea_mq.model.packed_attention import PackedLayout
from fedsea_mq.model.parts import BlockRun
from fedsea_mq.training.batch import Batch
from fedsea_mq.training.seeds import DropoutStream
from fedsea_mq.training.settings import TrainingSettings

# Cosine and sine of the rotary embedding, `[1, positions, head_dim]` each.
Rotation = tuple[torch.Tensor, torch.Tensor]


class TrainedBlocks:
    """Differentiable as a whole: a client has no other use for the thread meanwhile."""

    def __init__(self, run: BlockRun, settings: TrainingSettings, dropout: DropoutStream) -> None:
        self.dropout = dropout
        self.autocast = autocast(settings)
        self._run = run
        self._recomputes = settings.recomputes

    def __call__(self, inputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """`[total, hidden]` to `[total, hidden]`, fp32."""
        if not self._run.layers:
            return inputs
        with self.dropout.next_pass():
            return self._through(inputs, batch)

    @torch.no_grad()
    def evaluate(self, inputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The same without dropout and without a graph; it is no pass that dropout counts."""
        if not self._run.layers:
            return inputs
        self._run.eval()
        try:
            return self._through(inputs, batch)
        finally:
            self._run.train()

    def _through(self, inputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        packed = inputs[None]
        with self.autocast():
            rotation = self._run.rotary(packed, batch.positions(inputs.device)[None])
            for layer in self._run.layers:
                step = partial(run_layer, layer, batch.lengths, rotation)
                if self._recomputes and torch.is_grad_enabled():
                    # The graph holds the states between layers only.
                    packed = checkpoint(step, packed, use_reentrant=False)
                else:
                    packed = step(packed)
        return packed[0]


def autocast(settings: TrainingSettings) -> partial[torch.autocast]:
    """What products are computed in, as a maker of contexts."""
    return partial(
        torch.autocast, settings.device, torch.bfloat16, enabled=settings.dtype == "bf16"
    )


def run_layer(
    layer: nn.Module, lengths: tuple[int, ...], rotation: Rotation, packed: torch.Tensor
) -> torch.Tensor:
    """`[1, total, hidden]` of sequences of these lengths through one block."""
    layout = PackedLayout(lengths)
    return cast(torch.Tensor, layer(packed, position_embeddings=rotation, layout=layout))
