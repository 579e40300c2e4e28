"""The trunk in training: an adapter a client, or one for all, over one copy of the weights."""

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
from fedsea_mq.training.graphs import Graphs
from fedsea_mq.training.initial_adapters import drawn_adapter
from fedsea_mq.training.settings import TrainingSettings
from fedsea_mq.training.sliced_blocks import SlicedBlocks, SlicedPass, Slices
from fedsea_mq.training.state import PartState
from fedsea_mq.training.trained_adapter import TrainedAdapter


class GroupedTrunk:
    """Runs several clients' sequences in one pass, each over the adapter that its batch names.

    `adapters` are by name, each with an optimiser of its own. Passes come in slices, for the thread
    may have other work too; one is under way at a time. A gradient of nothing but zeros for the
    rows of a client that did not answer leaves it unlearned: then its adapter is not stepped but
    told to `forget`. Without `grouped` the trunk is not trained: adapters have no tensors, and
    gradients pass.
    """

    def __init__(
        self,
        blocks: SlicedBlocks,
        grouped: GroupedLora | None,
        settings: TrainingSettings,
        hidden: int,
    ) -> None:
        self.adapters: dict[str, TrainedAdapter] = {}
        self.graphs: Graphs[SlicedPass] = Graphs(settings.max_positions)
        self._blocks = blocks
        self._grouped = grouped
        self._settings = settings
        self._hidden = hidden

    def add(self, name: str, adapter: Adapter | None = None) -> None:
        """Hold another adapter: a copy of this one, or as peft begins one.

        Raises:
            AdapterError: the name is taken, or names or shapes are not those of this trunk.
        """
        lora, grouped = self._settings.lora, self._grouped
        if name in self.adapters:
            raise AdapterError("an adapter of this name is held already")
        weights = _Weights({} if grouped is None else grouped.shapes(lora.rank), self._settings)
        if adapter is not None:
            weights.load(adapter)
        if grouped is not None:
            grouped.add(name, weights.parameters(), lora)
        outdate = partial(self.graphs.outdate, name)
        self.adapters[name] = TrainedAdapter(weights, self._settings.optimizer, outdate)

    def remove(self, name: str) -> None:
        """Let go of an adapter, of its optimiser and of the passes over it."""
        self.graphs.outdate(name)
        if self._grouped is not None:
            self._grouped.remove(name)
        self.adapters.pop(name, None)

    def forward(
        self, ticket: Hashable, states: torch.Tensor, batch: Batch, *, wants_gradient: bool = True
    ) -> Slices[torch.Tensor]:
        """`[total, hidden]` to `[total, hidden]`, fp32 and of no graph.

        The pass waits for its gradient under `ticket`, unless none is wanted.

        Raises:
            BatchMismatch: `states` are not the batch's, or it does not say whose sequences are.
            AdapterError: an adapter that is not held.
            TicketInUse: a pass under this ticket waits for its gradient.
            Busy: too many positions wait for their gradients.
        """
        batch.check_rows("states", states, self._hidden)
        if not batch.adapters:
            raise BatchMismatch("a trunk of several adapters must be told whose each sequence is")
        if not set(batch.adapters) <= self.adapters.keys():
            raise AdapterError("a batch of an adapter that is not held")
        if wants_gradient:
            self.graphs.check_room(ticket, batch)
        outputs, waiting = yield from self._blocks.forward(
            states, batch, keeps_graph=wants_gradient
        )
        if wants_gradient:
            self.graphs.keep(ticket, waiting)
        return outputs

    def backward(self, ticket: Hashable, gradient: torch.Tensor) -> Slices[torch.Tensor]:
        """Add to the adapters' gradients; give the gradient by the states, `[total, hidden]`.

        `gradient` is `[total, hidden]`, of the loss by the outputs. The ticket is spent.

        Raises:
            TicketUnknown: no pass waits under it, or a step was taken since.
            BatchMismatch: `gradient` has not the outputs' shape; the pass goes on waiting.
        """
        waiting = self.graphs.get(ticket)
        waiting.batch.check_rows("gradient", gradient, waiting.hidden)
        self.graphs.drop(ticket)
        return (yield from self._blocks.backward(waiting, gradient))

    def drop(self, ticket: Hashable) -> None:
        """Give up a pass whose gradients will not come."""
        self.graphs.drop(ticket)

    def average(self, weights: Mapping[str, float]) -> dict[str, torch.Tensor]:
        """The weighted mean of the named adapters.

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
        return mean

    def state(self) -> PartState:
        """A copy of all that training changes; dropout follows from the batches' seeds.

        Raises:
            CheckpointError: gradients wait for their step.
        """
        return PartState(0, {name: adapter.state() for name, adapter in self.adapters.items()})

    def restore(self, state: PartState) -> None:
        """Hold the adapters of `state` and no others, and go on exactly from there.

        Raises:
            AdapterError, CheckpointError: an adapter of another trunk.
        """
        for name in list(self.adapters):
            self.remove(name)
        for name, adapter in state.adapters.items():
            self.add(name)
            self.adapters[name].restore(adapter)


class _Weights:
    """The tensors of one adapter, drawn as all are."""

    def __init__(
        self, of_shapes: Mapping[str, tuple[int, ...]], settings: TrainingSettings
    ) -> None:
        self._parameters = {
            name: nn.Parameter(tensor.to(settings.device))
            for name, tensor in drawn_adapter(of_shapes, settings.seed).items()
        }

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return self._parameters

    def tensors(self) -> Adapter:
        return {name: weight.detach() for name, weight in self._parameters.items()}

    def load(self, adapter: Adapter) -> None:
        own = self.tensors()
        check_adapter(adapter, shapes(own))
        for name, tensor in own.items():
            tensor.copy_(adapter[name])
