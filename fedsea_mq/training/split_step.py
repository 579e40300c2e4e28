"""One training step in three parts: tensors in, tensors out, and gradients back.

    states = head.forward(ticket, ids, batch)         # the caller adds noise to the states
    outputs = finish(trunk.forward(ticket, states, batch))     # see `grouped_trunk`
    learned = tail.learn(outputs, batch, labels)
    gradient = finish(trunk.backward(ticket, learned.gradient))
    head.backward(ticket, gradient)
    adapters = (head.adapter, trunk.adapters[name], tail.adapter)
    factor = clip_factor((adapter.squared_norm() for adapter in adapters), max_norm)
    for adapter in adapters:
        adapter.step(factor)

Several forward and backward passes before one step accumulate gradients; the losses are then means
over the answer tokens of all of them (`tail.learn`, `answer_tokens`). A ticket names one batch, and
is whatever the caller has to name it by. Tensors lie on the device of the part that takes them, and
one thread runs a part.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedsea_mq.errors import BatchMismatch, TrainingDiverged
from fedsea_mq.model.parts import Tail
from fedsea_mq.training.batch import Batch, answer_rows
from fedsea_mq.training.blocks import TrainedBlocks
from fedsea_mq.training.seeds import DropoutStream
from fedsea_mq.training.ticketed_pass import TicketedPass
from fedsea_mq.training.trained_adapter import TrainedAdapter


class _Part:
    """What the two have in common: one adapter, and dropout's random numbers."""

    def __init__(self, adapter: TrainedAdapter, dropout: DropoutStream) -> None:
        self.adapter = adapter
        self.dropout = dropout

    @property
    def adapters(self) -> Mapping[str, TrainedAdapter]:
        """The one adapter, named as peft names the only one."""
        return {"default": self.adapter}


class HeadStep(_Part):
    """Embedding and first blocks; nothing but the blocks' adapter is trained."""

    def __init__(
        self, embedding: nn.Embedding, passes: TicketedPass, adapter: TrainedAdapter
    ) -> None:
        super().__init__(adapter, passes.blocks.dropout)
        self._embedding = embedding
        self._passes = passes

    @property
    def wants_gradient(self) -> bool:
        """Whether there is anything to train: if not, no pass waits for a gradient."""
        return self.adapter.trains

    def forward(self, ticket: Hashable, ids: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Token ids `[total]` to states `[total, hidden]`, fp32 and of no graph.

        The pass waits for its gradient under `ticket`, if there is anything to train.

        Raises:
            BatchMismatch: `ids` are not the batch's.
            TicketInUse: a pass under this ticket waits for its gradient.
            Busy: too many positions wait for their gradients.
        """
        batch.check_rows("token ids", ids)
        states = self._embedding(ids).float()
        return self._passes.forward(
            ticket, states, batch, trains=self.adapter.trains, wants_gradient=False
        )

    def evaluate(self, ids: torch.Tensor, batch: Batch) -> torch.Tensor:
        """As `forward`, without dropout and without a pass that waits.

        Raises:
            BatchMismatch: `ids` are not the batch's.
        """
        batch.check_rows("token ids", ids)
        return self._passes.blocks.evaluate(self._embedding(ids).float(), batch)

    def states(self, ticket: Hashable) -> torch.Tensor:
        """What `forward` gave for a pass that waits: `[total, hidden]`, of no graph.

        Raises:
            TicketUnknown: no pass waits under the ticket, or a step was taken since.
        """
        return self._passes.graphs.get(ticket).outputs.detach()

    def backward(self, ticket: Hashable, gradient: torch.Tensor) -> None:
        """Add to the adapter's gradients; `gradient` `[total, hidden]` is that by the states.

        Raises:
            TicketUnknown: no pass waits under the ticket, or a step was taken since.
            BatchMismatch: `gradient` has not the states' shape; the pass goes on waiting.
        """
        self._passes.backward(ticket, gradient)

    def drop(self, ticket: Hashable) -> None:
        """Give up a pass whose gradient will not come."""
        self._passes.graphs.drop(ticket)


@dataclass(frozen=True, slots=True)
class Learned:
    """`loss` in nats, and its gradient `[total, hidden]` by the tail's inputs, if wanted."""

    loss: float
    gradient: torch.Tensor | None


class TailStep(_Part):
    """The last blocks, the final norm and lm_head; nothing but the blocks' adapter is trained."""

    def __init__(
        self, tail: Tail, blocks: TrainedBlocks, adapter: TrainedAdapter, hidden: int
    ) -> None:
        super().__init__(adapter, blocks.dropout)
        self._blocks = blocks
        self._norm = tail.norm
        self._lm_head = tail.lm_head
        self._hidden = hidden

    def learn(
        self,
        outputs: torch.Tensor,
        batch: Batch,
        labels: torch.Tensor,
        *,
        answer_tokens: int | None = None,
        wants_gradient: bool = True,
    ) -> Learned:
        """The loss on the answer tokens, with its gradients added to the adapter's.

        `outputs` are the trunk's, `[total, hidden]`; `labels` `[total]` are the token ids, or
        `IGNORED` where the loss is not about them. The loss is the sum over this batch's answer
        tokens, over `answer_tokens`: those of all batches of one optimiser step, by default of this
        one.

        Raises:
            BatchMismatch: outputs or labels are not the batch's, or no token is an answer.
            TrainingDiverged: the loss is not a finite number; no gradient was added.
        """
        batch.check_rows("outputs", outputs, self._hidden)
        rows = answer_rows(labels, batch)
        if not len(rows):
            raise BatchMismatch("no token of the batch is an answer: there is nothing to learn")
        inputs = outputs.detach().requires_grad_(wants_gradient)
        with torch.enable_grad():
            logits = self.logits(inputs, batch, rows)
            total = cross_entropy(logits, labels[rows + 1].to(logits.device), reduction="sum")
            loss = total / (answer_tokens or len(rows))
        if not math.isfinite(value := loss.item()):
            raise TrainingDiverged("the loss is not a finite number")
        if loss.requires_grad:
            torch.autograd.backward(loss)
        return Learned(value, inputs.grad)

    @torch.no_grad()
    def evaluate(self, outputs: torch.Tensor, batch: Batch, labels: torch.Tensor) -> float:
        """The loss in nats, summed over the batch's answer tokens; no dropout, nothing is learned.

        Raises:
            BatchMismatch: outputs or labels are not the batch's.
        """
        batch.check_rows("outputs", outputs, self._hidden)
        rows = answer_rows(labels, batch)
        logits = self._logits(self._blocks.evaluate(outputs, batch)[rows])
        return cross_entropy(logits, labels[rows + 1].to(logits.device), reduction="sum").item()

    def logits(self, inputs: torch.Tensor, batch: Batch, rows: torch.Tensor) -> torch.Tensor:
        """fp32 logits `[rows, vocab]`; no other row goes through lm_head, the widest product."""
        return self._logits(self._blocks(inputs, batch)[rows])

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        with self._blocks.autocast():
            return cast(torch.Tensor, self._lm_head(self._norm(states)).float())
