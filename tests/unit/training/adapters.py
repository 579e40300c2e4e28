"""Adapters of a small model's shapes, and clients that moved away from them."""

from __future__ import annotations

import torch

SHAPES = {
    "head.0.q.lora_A": (4, 16),
    "head.0.q.lora_B": (16, 4),
    "tail.0.v.lora_A": (4, 16),
    "tail.0.v.lora_B": (16, 4),
    "tail.scale": (),
}


def adapters(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=drawn) for name, shape in SHAPES.items()}


def moved(before: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    step = adapters(seed, scale=0.1)
    return {name: tensor + step[name] for name, tensor in before.items()}
