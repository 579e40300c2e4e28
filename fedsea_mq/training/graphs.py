"""Forward passes that wait for their gradient, by ticket."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from fedsea_mq.errors import Busy, TicketInUse, TicketUnknown
from fedsea_mq.training.batch import Batch


@dataclass(frozen=True, slots=True)
class Graph:
    """Inputs and outputs `[total, hidden]` of a forward pass, with autograd's graph between."""

    batch: Batch
    inputs: torch.Tensor
    outputs: torch.Tensor


class Waiting(Protocol):
    """A forward pass, whatever it keeps for its gradient."""

    @property
    def batch(self) -> Batch:
        """The sequences that it ran over."""
        ...


G = TypeVar("G", bound=Waiting)


class Graphs(Generic[G]):
    """Holds graphs of at most `max_positions` in all, which bounds the memory that they take."""

    def __init__(self, max_positions: int) -> None:
        self._max_positions = max_positions
        self._held: dict[Hashable, G] = {}

    @property
    def positions(self) -> int:
        """Positions of all graphs that are held."""
        return sum(graph.batch.total for graph in self._held.values())

    def check_room(self, ticket: Hashable, batch: Batch) -> None:
        """Call before computing.

        Raises:
            TicketInUse: a pass under this ticket waits already.
            Busy: the graph would exceed the bound.
        """
        if ticket in self._held:
            raise TicketInUse("a forward pass under this ticket waits for its gradient")
        if self.positions + batch.total > self._max_positions:
            raise Busy(
                f"graphs of {self.positions} positions are held, {batch.total} more were asked "
                f"for, the limit is {self._max_positions}"
            )

    def keep(self, ticket: Hashable, graph: G) -> None:
        """Hold a graph until it is taken, dropped or outdated."""
        self._held[ticket] = graph

    def get(self, ticket: Hashable) -> G:
        """The graph of a ticket.

        Raises:
            TicketUnknown: never made, answered, dropped, or outdated by an optimiser step.
        """
        if ticket not in self._held:
            raise TicketUnknown("no forward pass waits under this ticket: make it again")
        return self._held[ticket]

    def drop(self, ticket: Hashable) -> None:
        """Let go of a graph, if it is there."""
        self._held.pop(ticket, None)

    def outdate(self, adapter: str | None = None) -> None:
        """Let go of all graphs, or of those of an adapter: the weights they ran over change."""
        self._held = {
            ticket: graph
            for ticket, graph in self._held.items()
            if adapter is not None and adapter not in graph.batch.adapters
        }
