"""Weighted averaging of adapter updates (FedAvg: McMahan et al., AISTATS 2017, algorithm 1).

An update is what a client's local steps added to the adapters that the round began with. Adding the
weighted mean of the updates to these is the same as averaging the clients' adapters.

Caveat of LoRA: a layer's weights change by the product `B A`, and `A` and `B` are averaged each by
itself. The product of the averages is not the average of the products, except where all clients
agree on `A` or on `B`. This is what federated LoRA commonly does, and it is an approximation: an
exact average of rank-r products has a rank of up to r times the clients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

import torch

from fedsea_mq.errors import AdapterError, ConfigError, TooFewClients, UpdateRefused
from fedsea_mq.model.lora import Adapter
from fedsea_mq.training.adapter_layout import AdapterLayout

MAX_WEIGHT: Final = 1 << 20


def update_of(after: Adapter, before: Adapter) -> dict[str, torch.Tensor]:
    """What training added: `after - before`, in fp32.

    Raises:
        AdapterError: the two are not of one layout.
    """
    if wrong := AdapterLayout.of_adapters(before).mismatch(after):
        raise AdapterError(wrong)
    return {name: after[name].detach().float() - old.float() for name, old in before.items()}


def update_norm(update: Adapter) -> float:
    """The L2 norm over all tensors together. Not finite if an element is not."""
    return math.sqrt(sum(float(part.double().square().sum()) for part in update.values()))


def clip_update(update: Adapter, max_norm: float) -> tuple[dict[str, torch.Tensor], float]:
    """The update scaled to a norm of at most `max_norm`, and the norm that it had.

    So one client moves the mean by no more than `max_norm` times its share of the weight. What is
    not finite stays so: no scale mends it.
    """
    norm = update_norm(update)
    factor = max_norm / norm if norm > max_norm else 1.0
    return {name: part * factor for name, part in update.items()}, norm


class WeightedMean:
    """The mean of updates, weighted by their samples, summed in fp64 as they come.

    It holds one sum, not the updates. The order in which they come changes the last bits of fp64
    only: by at most about `clients * 2^-53` of the largest partial sum.
    """

    def __init__(self, layout: AdapterLayout) -> None:
        self._layout = layout
        self._sum = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in layout.shapes}
        self.weight = 0

    def add(self, update: Adapter, weight: int) -> None:
        """Count an update of a client that trained on `weight` samples.

        Raises:
            UpdateRefused: not of the layout, not finite, or no weight of 1 to `MAX_WEIGHT`. Nothing
                of it is counted.
        """
        if wrong := self._layout.mismatch(update):
            raise UpdateRefused(wrong)
        if type(weight) is not int or not 1 <= weight <= MAX_WEIGHT:
            raise UpdateRefused(f"weight is not an integer of 1 to {MAX_WEIGHT}")
        for name, part in update.items():
            if not part.is_floating_point() or not bool(torch.isfinite(part).all()):
                raise UpdateRefused(f"{name} is not all finite floats")
        for name, part in update.items():
            self._sum[name].add_(part.detach().cpu().double(), alpha=weight)
        self.weight += weight

    def mean(self) -> dict[str, torch.Tensor]:
        """The weighted mean, in fp64.

        Raises:
            TooFewClients: nothing was added.
        """
        if not self.weight:
            raise TooFewClients("no update to average")
        return {name: total / self.weight for name, total in self._sum.items()}


@dataclass(frozen=True, slots=True)
class Personal:
    """Which adapters stay with their client: shell patterns of names, such as `tail.*`.

    Personal adapters are trained like the others but are neither sent nor averaged.
    """

    patterns: tuple[str, ...] = ()

    def keeps(self, name: str) -> bool:
        """Whether the adapter of this name stays with its client."""
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)

    def shared(self, adapters: Adapter) -> dict[str, torch.Tensor]:
        """The adapters that are averaged.

        Raises:
            ConfigError: a pattern names no adapter, which would share what was meant to stay; or
                nothing is left to average.
        """
        self._check(adapters)
        return {name: tensor for name, tensor in adapters.items() if not self.keeps(name)}

    def kept(self, adapters: Adapter) -> dict[str, torch.Tensor]:
        """The adapters that stay. Raises `ConfigError` as `shared` does."""
        self._check(adapters)
        return {name: tensor for name, tensor in adapters.items() if self.keeps(name)}

    def _check(self, names: Iterable[str]) -> None:
        known = list(names)
        for pattern in self.patterns:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise ConfigError(f"personal adapters: {pattern!r} names no adapter")
        if all(self.keeps(name) for name in known):
            raise ConfigError("personal adapters: no adapter is left to average")
