"""The three parts in one process, stepped as their callers will step them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.partition import Cut
from fedsea_mq.tasks.encoding import Encoded
from fedsea_mq.training.batch import Batch, Packed
from fedsea_mq.training.grouped_trunk import GroupedTrunk
from fedsea_mq.training.load import load_grouped_trunk, load_trained_client
from fedsea_mq.training.optimizer import clip_factor
from fedsea_mq.training.seeds import derived_seed
from fedsea_mq.training.settings import TrainingSettings
from fedsea_mq.training.sliced_blocks import finish
from fedsea_mq.training.split_step import HeadStep, TailStep

ADAPTER = "default"


def adapted(batch: Batch, adapter: str = ADAPTER, seed: int | None = None) -> Batch:
    """The batch as the trunk takes it; with a seed, each sequence has dropout of its own."""
    count = len(batch.lengths)
    seeds = () if seed is None else tuple(derived_seed(seed, n) for n in range(count))
    return Batch(batch.lengths, (adapter,) * count, seeds)


@dataclass
class SplitTraining:
    head: HeadStep
    trunk: GroupedTrunk
    tail: TailStep
    max_norm: float
    passes: int = 0

    @classmethod
    def load(
        cls, folder: Path, cut: Cut, settings: TrainingSettings, max_norm: float = 1.0
    ) -> SplitTraining:
        checkpoint = Checkpoint.open(str(folder))
        head, tail = load_trained_client(checkpoint, cut, settings)
        trunk = load_grouped_trunk(checkpoint, cut, settings)
        trunk.add(ADAPTER)
        return cls(head, trunk, tail, max_norm)

    @property
    def adapters(self) -> list:
        return [self.head.adapter, self.trunk.adapters[ADAPTER], self.tail.adapter]

    def adapter(self) -> dict[str, torch.Tensor]:
        """Of the three parts together."""
        return {name: t for one in self.adapters for name, t in one.tensors().items()}

    def learn(self, packed: Packed, ticket: str = "", answer_tokens: int | None = None) -> float:
        """Forward and backward through all parts; the loss."""
        states = self.head.forward(ticket, packed.ids, packed.batch)
        wants = self.head.wants_gradient
        passes_on = wants or self.trunk.adapters[ADAPTER].trains
        batch = adapted(packed.batch, seed=self.passes)
        self.passes += 1
        outputs = finish(self.trunk.forward(ticket, states, batch, wants_gradient=passes_on))
        learned = self.tail.learn(
            outputs,
            packed.batch,
            packed.labels,
            answer_tokens=answer_tokens,
            wants_gradient=passes_on,
        )
        if passes_on:
            assert learned.gradient is not None
            gradient = finish(self.trunk.backward(ticket, learned.gradient))
            if wants:
                self.head.backward(ticket, gradient)
        return learned.loss

    @torch.no_grad()
    def logits(self, ids: list[int]) -> torch.Tensor:
        """`[positions, vocab]` of one sequence, by way of the tail's own layers."""
        batch = Batch((len(ids),))
        states = self.head.forward("logits", torch.tensor(ids), batch)
        run = self.trunk.forward("logits", states, adapted(batch), wants_gradient=False)
        outputs = finish(run)
        self.head.drop("logits")
        return self.tail.logits(outputs, batch, torch.arange(len(ids)))

    def update(self) -> None:
        factor = clip_factor((one.squared_norm() for one in self.adapters), self.max_norm)
        for one in self.adapters:
            one.step(factor)

    def step(self, *micro_batches: Sequence[Encoded]) -> float:
        """One optimiser step over the micro-batches; the loss before it."""
        packed = [Packed.of(batch) for batch in micro_batches]
        answers = sum(one.answer_tokens for one in packed)
        loss = sum(self.learn(one, answer_tokens=answers) for one in packed)
        self.update()
        return loss


def check_close(ours: Mapping[str, Any], theirs: Mapping[str, Any], tolerance: float) -> None:
    """Each tensor within `tolerance` of its norm."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        expected = theirs[name].detach()
        assert float((tensor - expected).norm() / expected.norm()) <= tolerance, name
