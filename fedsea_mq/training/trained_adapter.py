"""One adapter of one part with its optimiser: what is stepped, saved, averaged and resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from fedsea_mq.errors import CheckpointError
from fedsea_mq.model.lora import Adapter
from fedsea_mq.training.optimizer import AdapterOptimizer
from fedsea_mq.training.settings import OptimizerSettings


class AdapterWeights(Protocol):
    """Where the weights of an adapter lie."""

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What is trained, by name."""

    def tensors(self) -> Adapter:
        """The adapter by peft's names, not a copy."""

    def load(self, adapter: Adapter) -> None:
        """Overwrite the weights in place; raises `AdapterError` if it does not fit."""


@dataclass(frozen=True, slots=True)
class AdapterState:
    """Steps done, the adapter, and the optimiser's moments: copies, on the CPU."""

    steps: int
    adapter: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]


class TrainedAdapter:
    """Weights and optimiser; `outdate` is called before the weights change."""

    def __init__(
        self, weights: AdapterWeights, settings: OptimizerSettings, outdate: Callable[[], None]
    ) -> None:
        self._weights = weights
        self._optimizer = AdapterOptimizer(weights.parameters(), settings)
        self._outdate = outdate

    @property
    def trains(self) -> bool:
        """Whether there are weights: a part may have no blocks, or no LoRA."""
        return bool(self._weights.parameters())

    @property
    def steps(self) -> int:
        """Optimiser steps done."""
        return self._optimizer.steps

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What is trained, by name."""
        return self._weights.parameters()

    def tensors(self) -> dict[str, torch.Tensor]:
        """A copy of the adapter, by the names of peft's files without their prefix."""
        return _copied(self._weights.tensors())

    def load(self, adapter: Adapter) -> None:
        """Take these weights, and keep the optimiser's state. Waiting passes are outdated.

        Raises:
            AdapterError: names or shapes are not this adapter's, or a value is not finite.
        """
        self._outdate()
        self._weights.load(adapter)

    def squared_norm(self) -> float:
        """Of the gradients since the last step: what parts tell each other to clip by."""
        return self._optimizer.squared_norm()

    def step(self, factor: float) -> None:
        """One optimiser step over gradients times `factor`. Waiting passes are outdated.

        Raises:
            TrainingDiverged: a gradient is not a finite number; the weights are as before.
        """
        self._outdate()
        self._optimizer.step(factor)

    def forget(self) -> None:
        """Let go of the gradients since the last step, which is left out."""
        self._outdate()
        self._optimizer.forget()

    def state(self) -> AdapterState:
        """What `restore` needs to go on from here.

        Raises:
            CheckpointError: gradients wait for their step, and would be lost.
        """
        if not self._optimizer.between_steps:
            raise CheckpointError("gradients wait for their step: save between steps")
        moments = _copied(self._optimizer.moments())
        return AdapterState(self.steps, self.tensors(), moments)

    def restore(self, state: AdapterState) -> None:
        """Go on exactly from there.

        Raises:
            AdapterError, CheckpointError: a state of another adapter.
        """
        self.load(state.adapter)
        self._optimizer.restore(state.steps, state.moments)


def _copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
