"""What the aggregator makes of the mean update: FedAvg(M), FedAdam and FedYogi.

The mean update is taken as a negative gradient (Reddi et al., ICLR 2021, algorithm 2). An optimiser
holds settings only. Its moments are a plain dict of fp64 tensors that goes in and comes out of each
step, so a checkpoint is that dict and nothing else; the first step takes an empty one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from fedsea_mq.errors import AdapterError, CheckpointError
from fedsea_mq.model.lora import Adapter
from fedsea_mq.training.adapter_layout import AdapterLayout

Moments = Mapping[str, torch.Tensor]
Step = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


class ServerOptimizer(Protocol):
    """Makes the next round's adapters."""

    def step(self, adapters: Adapter, mean_update: Adapter, moments: Moments) -> Step:
        """The new adapters, in the dtypes of the old ones, and the new moments.

        Raises:
            AdapterError: the update is not of the adapters' layout.
            CheckpointError: the moments are of another optimiser or other adapters.
        """


@dataclass(frozen=True, slots=True)
class FedAvg:
    """`v = momentum * v + update; w += learning_rate * v`.

    As it stands this is FedAvg (McMahan et al., 2017): the clients' mean, exactly. With momentum it
    is FedAvgM (Hsu et al., 2019).
    """

    learning_rate: float = 1.0
    momentum: float = 0.0

    def step(self, adapters: Adapter, mean_update: Adapter, moments: Moments) -> Step:
        """See `ServerOptimizer.step`."""
        _check(adapters, mean_update)
        velocities = _read(moments, "velocity", adapters, 0.0)
        stepped, kept = {}, {}
        for name, old in adapters.items():
            velocity = self.momentum * velocities[name] + mean_update[name].double()
            stepped[name] = (old.double() + self.learning_rate * velocity).to(old.dtype)
            kept[f"velocity.{name}"] = velocity
        return stepped, kept


@dataclass(frozen=True, slots=True)
class FedAdam:
    """`m = beta1 m + (1 - beta1) update; w += learning_rate * m / (sqrt(v) + tau)`, elementwise.

    `v = beta2 v + (1 - beta2) update^2`, from `tau^2` on, without bias correction (algorithm 2).
    `tau` is how adaptive it is: updates far below it are scaled alike.
    """

    learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def step(self, adapters: Adapter, mean_update: Adapter, moments: Moments) -> Step:
        """See `ServerOptimizer.step`."""
        _check(adapters, mean_update)
        firsts = _read(moments, "first", adapters, 0.0)
        seconds = _read(moments, "second", adapters, self.tau**2)
        stepped, kept = {}, {}
        for name, old in adapters.items():
            update = mean_update[name].double()
            first = self.beta1 * firsts[name] + (1 - self.beta1) * update
            second = self._second(seconds[name], update.square())
            moved = self.learning_rate * first / (second.sqrt() + self.tau)
            stepped[name] = (old.double() + moved).to(old.dtype)
            kept[f"first.{name}"], kept[f"second.{name}"] = first, second
        return stepped, kept

    def _second(self, second: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        return self.beta2 * second + (1 - self.beta2) * square


@dataclass(frozen=True, slots=True)
class FedYogi(FedAdam):
    """FedAdam whose second moment moves by `(1 - beta2) update^2` at most: sign-controlled."""

    def _second(self, second: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        return second - (1 - self.beta2) * square * torch.sign(second - square)


def _check(adapters: Adapter, mean_update: Adapter) -> None:
    if wrong := AdapterLayout.of_adapters(adapters).mismatch(mean_update):
        raise AdapterError(wrong)


def _read(moments: Moments, kind: str, adapters: Adapter, start: float) -> dict[str, torch.Tensor]:
    """The moments of one kind, fp64, by adapter; `start` everywhere if there are none at all."""
    if not moments:
        return {
            name: torch.full(tensor.shape, start, dtype=torch.float64)
            for name, tensor in adapters.items()
        }
    read = {}
    for name, tensor in adapters.items():
        moment = moments.get(f"{kind}.{name}")
        if moment is None or moment.shape != tensor.shape or moment.dtype != torch.float64:
            raise CheckpointError(f"no fp64 moment {kind}.{name} of shape {tuple(tensor.shape)}")
        read[name] = moment
    return read
