"""The trunk of the `hierarchical` strategy: an adapter a client over one copy of the weights."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from functools import partial

import torch
from torch import nn

from fedsea_mq.errors import AdapterError, BatchMismatch
from fedsea_mq.model.grouped_lora import GroupedLora
from fedsea_mq.model.lora import Adapter, check_adapter, shapes
from fedsea_mq.training.batch import Batch
from fedsea_mq.training.seeds import derived_seed
from fedsea_mq.training.settings import TrainingSettings
from fedsea_mq.training.ticketed_pass import TicketedPass
from fedsea_mq.training.trained_adapter import TrainedAdapter


class GroupedTrunk:
    """Runs all clients' sequences in one pass, each over its client's adapter.

    `adapters` are by name, each with an optimiser of its own; a batch names one a sequence. A
    gradient of nothing but zeros for the rows of a client that did not answer leaves it unlearned:
    then its adapter is not stepped but told to `forget`.
    """

    def __init__(
        self, passes: TicketedPass, grouped: GroupedLora, settings: TrainingSettings, hidden: int
    ) -> None:
        self.adapters: dict[str, TrainedAdapter] = {}
        self.dropout = passes.blocks.dropout
        self._passes = passes
        self._grouped = grouped
        self._settings = settings
        self._lora = settings.lora
        self._hidden = hidden

    def add(self, name: str, adapter: Adapter | None = None) -> None:
        """Hold another client's adapter: a copy of this one, or as peft begins one.

        Raises:
            AdapterError: the name is taken, or names or shapes are not those of this trunk.
        """
        weights = _Weights(self._grouped.shapes(self._lora.rank), self._settings)
        if adapter is not None:
            weights.load(adapter)
        self._grouped.add(name, weights.parameters(), self._lora)
        outdate = partial(self._passes.graphs.outdate, name)
        self.adapters[name] = TrainedAdapter(weights, self._settings.optimizer, outdate)

    def remove(self, name: str) -> None:
        """Let go of a client's adapter, of its optimiser and of the passes over it."""
        self._passes.graphs.outdate(name)
        self._grouped.remove(name)
        self.adapters.pop(name, None)

    def forward(
        self, ticket: Hashable, states: torch.Tensor, batch: Batch, *, wants_gradient: bool = True
    ) -> torch.Tensor:
        """As `TrunkStep.forward`; also raises `AdapterError` for an adapter that is not held."""
        batch.check_rows("states", states, self._hidden)
        if not batch.adapters:
            raise BatchMismatch("a trunk of several adapters must be told whose each sequence is")
        if not set(batch.adapters) <= self.adapters.keys():
            raise AdapterError("a batch of an adapter that is not held")
        return self._passes.forward(
            ticket, states, batch, trains=True, wants_gradient=wants_gradient
        )

    def backward(self, ticket: Hashable, gradient: torch.Tensor) -> torch.Tensor | None:
        """As `TrunkStep.backward`."""
        return self._passes.backward(ticket, gradient)

    def drop(self, ticket: Hashable) -> None:
        """Give up a pass whose gradients will not come."""
        self._passes.graphs.drop(ticket)

    def average(self, weights: Mapping[str, float]) -> None:
        """Replace the named adapters by their weighted mean; optimisers keep their state.

        Raises:
            AdapterError: an adapter that is not held, or weights that are negative or all zero.
        """
        total = math.fsum(weights.values())
        if not weights.keys() <= self.adapters.keys():
            raise AdapterError("an average of adapters that are not held")
        if not 0.0 < total < math.inf or min(weights.values()) < 0.0:
            raise AdapterError("weights of an average: 0 or more, not all 0")
        mean: dict[str, torch.Tensor] = {}
        for name, weight in weights.items():
            for tensor, value in self.adapters[name].tensors().items():
                part = value * (weight / total)
                mean[tensor] = mean[tensor] + part if tensor in mean else part
        for name in weights:
            self.adapters[name].load(mean)


class _Weights:
    """The tensors of one client's adapter, drawn as peft draws them."""

    def __init__(
        self, of_shapes: Mapping[str, tuple[int, ...]], settings: TrainingSettings
    ) -> None:
        generator = torch.Generator().manual_seed(derived_seed(settings.seed, "adapter", "trunk"))
        self._parameters: dict[str, nn.Parameter] = {}
        for name, shape in of_shapes.items():
            tensor = torch.zeros(shape)
            if ".lora_A." in name:
                nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=generator)
            self._parameters[name] = nn.Parameter(tensor.to(settings.device))

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return self._parameters

    def tensors(self) -> Adapter:
        return {name: weight.detach() for name, weight in self._parameters.items()}

    def load(self, adapter: Adapter) -> None:
        own = self.tensors()
        check_adapter(adapter, shapes(own))
        for name, tensor in own.items():
            tensor.copy_(adapter[name])
