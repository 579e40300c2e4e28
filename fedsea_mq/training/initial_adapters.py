"""The adapters that a run begins with: known from a checkpoint's table of contents and a seed."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from fedsea_mq.errors import CheckpointError
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.lora import PROJECTIONS, LoraSettings
from fedsea_mq.model.partition import Cut, Part
from fedsea_mq.training.seeds import derived_seed

Shapes = Mapping[str, tuple[int, ...]]


def drawn_adapter(shapes: Shapes, seed: int) -> dict[str, torch.Tensor]:
    """Tensors of these shapes, fp32, on the CPU, as peft begins: A Kaiming-uniform, B zero.

    Each follows from the seed and its own name, whatever others there are.
    """
    drawn = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for name, tensor in drawn.items():
        if ".lora_A." in name:
            generator = torch.Generator().manual_seed(derived_seed(seed, "adapter", name))
            nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=generator)
    return drawn


def adapter_shapes(
    checkpoint: Checkpoint, cut: Cut, part: Part, lora: LoraSettings
) -> dict[str, tuple[int, ...]]:
    """The shapes of a part's adapter (no DoRA), by its tensors' names. No weight is read.

    Raises:
        CheckpointError: the checkpoint has no such projection, or not as a matrix.
        IllegalCut: the cut is none of the model.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for block in cut.blocks(part, checkpoint.blocks):
        for target in lora.targets:
            layer = f"model.layers.{block}.{PROJECTIONS[target]}.{target}"
            out_features, in_features = _matrix(checkpoint, f"{layer}.weight")
            shapes[f"{layer}.lora_A.weight"] = (lora.rank, in_features)
            shapes[f"{layer}.lora_B.weight"] = (out_features, lora.rank)
    return shapes


def _matrix(checkpoint: Checkpoint, name: str) -> tuple[int, int]:
    stored = checkpoint.tensors.get(name)
    if stored is None or len(stored.shape) != 2:
        raise CheckpointError(f"{checkpoint.folders[0]}: no matrix {name}")
    return stored.shape[0], stored.shape[1]
