"""Forward now, backward when the gradient comes, by ticket."""

from __future__ import annotations

from collections.abc import Hashable

import torch

from fedsea_mq.training.batch import Batch
from fedsea_mq.training.blocks import TrainedBlocks
from fedsea_mq.training.graphs import Graph, Graphs


class TicketedPass:
    """Runs batches through the blocks of a part and keeps their graphs."""

    def __init__(self, blocks: TrainedBlocks, graphs: Graphs[Graph]) -> None:
        self.blocks = blocks
        self.graphs = graphs

    def forward(
        self,
        ticket: Hashable,
        inputs: torch.Tensor,
        batch: Batch,
        *,
        trains: bool,
        wants_gradient: bool,
    ) -> torch.Tensor:
        """`[total, hidden]` to `[total, hidden]`, fp32 and of no graph.

        The graph is kept if the blocks train, or if the gradient of the inputs is wanted.

        Raises:
            TicketInUse: a pass under this ticket waits for its gradient.
            Busy: too many positions wait for their gradients.
        """
        keeps_graph = trains or wants_gradient
        if keeps_graph:
            self.graphs.check_room(ticket, batch)
        inputs = inputs.detach().requires_grad_(wants_gradient)
        with torch.set_grad_enabled(keeps_graph):
            outputs = self.blocks(inputs, batch)
        if keeps_graph:
            self.graphs.keep(ticket, Graph(batch, inputs, outputs))
        return outputs.detach()

    def backward(self, ticket: Hashable, gradient: torch.Tensor) -> torch.Tensor | None:
        """Add to the gradients of what is trained; give that of the inputs, if it is wanted.

        Raises:
            TicketUnknown: no graph waits under the ticket.
            BatchMismatch: `gradient` has not the outputs' shape; the graph goes on waiting.
        """
        graph = self.graphs.get(ticket)
        graph.batch.check_rows("gradient", gradient, graph.outputs.shape[1])
        self.graphs.drop(ticket)
        torch.autograd.backward(graph.outputs, gradient.to(graph.outputs))
        return graph.inputs.grad
