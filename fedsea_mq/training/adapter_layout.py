"""The agreed names and shapes of the adapters, and adapters as one flat vector.

The elements of the vector are the tensors in the order of their names, each in row-major order. So
two parties with the same layout mean the same element by the same index; `digest` compares layouts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import numpy as np
import torch

from fedsea_mq.errors import AdapterError
from fedsea_mq.model.lora import Adapter

MAX_TENSORS: Final = 1 << 16
MAX_DIMENSIONS: Final = 8
MAX_ELEMENTS: Final = 1 << 28


@dataclass(frozen=True, slots=True)
class AdapterLayout:
    """Names and shapes in the order of the names. Made by `of`."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]]) -> AdapterLayout:
        """The layout of tensors of these shapes; none where head and tail have no adapter.

        Raises:
            AdapterError: an empty tensor, or more than a layout may hold.
        """
        if len(shapes) > MAX_TENSORS:
            raise AdapterError(f"{len(shapes)} tensors, at most {MAX_TENSORS}")
        layout = cls(tuple(sorted((name, tuple(shape)) for name, shape in shapes.items())))
        for name, shape in layout.shapes:
            if len(shape) > MAX_DIMENSIONS or any(length < 1 for length in shape):
                raise AdapterError(f"{name}: {shape} is not a shape of adapters")
        if layout.elements > MAX_ELEMENTS:
            raise AdapterError(f"{layout.elements} elements, at most {MAX_ELEMENTS}")
        return layout

    @classmethod
    def of_adapters(cls, adapters: Adapter) -> AdapterLayout:
        """The layout that these adapters have."""
        return cls.of({name: tuple(tensor.shape) for name, tensor in adapters.items()})

    @property
    def elements(self) -> int:
        """The length of the vector."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    @property
    def digest(self) -> str:
        """SHA-256 of names and shapes, as hexadecimal."""
        return sha256(repr(self.shapes).encode()).hexdigest()

    def mismatch(self, adapters: Adapter) -> str:
        """What of these adapters is not of this layout; empty if nothing.

        Names of ours only: a name that is not agreed is the sender's, and left out.
        """
        for name, shape in self.shapes:
            if name not in adapters:
                return f"{name} is missing"
            if tuple(adapters[name].shape) != shape:
                return f"{name} of shape {tuple(adapters[name].shape)}, expected {shape}"
        if len(adapters) > len(self.shapes):
            return f"{len(adapters)} tensors, expected {len(self.shapes)}"
        return ""

    def flatten(self, adapters: Adapter) -> np.ndarray:
        """An adapter of any float dtype as an fp32 vector `[elements]`.

        Raises:
            AdapterError: not of this layout.
        """
        if wrong := self.mismatch(adapters):
            raise AdapterError(wrong)
        vector = np.empty(self.elements, np.float32)
        start = 0
        for name, shape in self.shapes:
            end = start + math.prod(shape)
            vector[start:end] = adapters[name].detach().float().cpu().numpy().reshape(-1)
            start = end
        return vector

    def unflatten(self, vector: np.ndarray) -> dict[str, torch.Tensor]:
        """Undo `flatten`: new tensors of the vector's dtype.

        Raises:
            AdapterError: the vector is not `[elements]`.
        """
        if vector.shape != (self.elements,):
            raise AdapterError(f"vector of shape {vector.shape}, expected ({self.elements},)")
        adapters: dict[str, torch.Tensor] = {}
        start = 0
        for name, shape in self.shapes:
            end = start + math.prod(shape)
            adapters[name] = torch.from_numpy(vector[start:end].reshape(shape).copy())
            start = end
        return adapters
