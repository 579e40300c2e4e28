"""Each strategy on the unsplit model, in peft's terms: what split training is held to.

One process, one whole model, padded batches. A member has its own weights of head and tail and, by
the strategy, a share in a trunk's; they are handed to the model at each pass, so that only the
adapters are there several times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from peft import get_peft_model
from torch import nn
from torch.func import functional_call
from transformers import AutoModelForCausalLM, get_scheduler

from fedsea_mq.model.lora import Adapter, LoraSettings
from fedsea_mq.run_settings import Strategy
from fedsea_mq.tasks.encoding import IGNORED, Encoded
from fedsea_mq.training.optimizer import clip_factor
from fedsea_mq.training.settings import OptimizerSettings

# The micro-batches of a member's step, which is counted from its first on.
Batches = Callable[[int], Sequence[Sequence[Encoded]]]
_PREFIX: Final = "base_model.model."


class UnsplitModel:
    """A peft model of all blocks whose adapter is given at each pass."""

    def __init__(self, folder: str, lora: LoraSettings, blocks: Sequence[int]) -> None:
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._model: Any = get_peft_model(base, lora.config(blocks)).train()

    def loss(self, adapter: Mapping[str, nn.Parameter], batch: Sequence[Encoded]) -> torch.Tensor:
        """In nats, summed over the answer tokens of the batch; padded as anyone would pad."""
        longest = max(len(one.ids) for one in batch)
        labels = _padded([one.labels for one in batch], longest, IGNORED)
        named: dict[str, torch.Tensor] = {
            _PREFIX + name.replace(".weight", ".default.weight"): weight
            for name, weight in adapter.items()
        }
        said = functional_call(
            self._model,
            named,
            kwargs={
                "input_ids": _padded([one.ids for one in batch], longest, 0),
                "attention_mask": _padded([[1] * len(one.ids) for one in batch], longest, 0),
            },
        )
        return nn.functional.cross_entropy(
            said.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), reduction="sum"
        )


def _padded(rows: Sequence[Sequence[int]], length: int, by: int) -> torch.Tensor:
    return torch.tensor([[*row, *[by] * (length - len(row))] for row in rows])


class Trainee:
    """Weights with their AdamW and schedule."""

    def __init__(self, adapter: Adapter, settings: OptimizerSettings) -> None:
        self.weights = {name: nn.Parameter(tensor.clone()) for name, tensor in adapter.items()}
        self._adamw = torch.optim.AdamW(
            self.weights.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._schedule = get_scheduler(
            settings.schedule.value, self._adamw, settings.warmup_steps, settings.total_steps
        )

    def squared_norm(self) -> float:
        """Of the gradients since the last step."""
        return float(
            sum(w.grad.square().sum() for w in self.weights.values() if w.grad is not None)
        )

    def scale(self, factor: float) -> None:
        """Multiply the gradients."""
        for weight in self.weights.values():
            if weight.grad is not None:
                weight.grad.mul_(factor)

    def step(self, factor: float) -> None:
        """Take a step over gradients times `factor`, and forget them."""
        self.scale(factor)
        self._adamw.step()
        self._schedule.step()
        self._adamw.zero_grad()

    def tensors(self) -> dict[str, torch.Tensor]:
        """A copy of the weights."""
        return {name: weight.detach().clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def load(self, adapter: Adapter) -> None:
        """Overwrite the weights."""
        for name, weight in self.weights.items():
            weight.copy_(adapter[name])


@dataclass(frozen=True, slots=True)
class UnsplitPlan:
    """What is trained how; all members alike."""

    strategy: Strategy
    rounds: int
    local_steps: int
    optimizer: OptimizerSettings
    trunk_optimizer: OptimizerSettings
    max_norm: float


@dataclass(frozen=True, slots=True)
class Trained:
    """Each member's losses, step by step, and what all have in common at the end."""

    losses: dict[str, list[float]]
    adapter: dict[str, torch.Tensor]


@dataclass(slots=True)
class _Member:
    """One member: its batches, its own ends, and the trunk that it trains on."""

    batches: Batches
    ends: Trainee
    trunk: Trainee
    losses: list[float]

    def learn(self, model: UnsplitModel) -> None:
        """Gradients of the mean loss over the answer tokens of all micro-batches of a step."""
        micros = self.batches(len(self.losses))
        answers = sum(len(one.answer) for micro in micros for one in micro)
        adapter = self.ends.weights | self.trunk.weights
        total = 0.0
        for micro in micros:
            loss = model.loss(adapter, micro) / answers
            torch.autograd.backward(loss)
            total += loss.item()
        self.losses.append(total)


def train_unsplit(
    model: UnsplitModel,
    plan: UnsplitPlan,
    members: Mapping[str, Batches],
    ends: Adapter,
    trunk: Adapter,
) -> Trained:
    """Train from the adapters `ends`, of head and tail, and `trunk`; members weigh the same."""
    shared = Trainee(trunk, plan.trunk_optimizer)
    taking_part = {
        name: _Member(
            batches,
            Trainee(ends, plan.optimizer),
            Trainee(trunk, plan.trunk_optimizer)
            if plan.strategy is Strategy.HIERARCHICAL
            else shared,
            [],
        )
        for name, batches in members.items()
    }
    all_members = list(taking_part.values())
    for _ in range(plan.rounds):
        if plan.strategy is Strategy.CLIENT_BATCH:
            for _ in range(plan.local_steps):
                _joint_step(model, all_members, shared, plan.max_norm)
        else:
            for member in all_members:
                for _ in range(plan.local_steps):
                    _step(model, member, plan.max_norm)
        _average([member.ends for member in all_members])
        if plan.strategy is Strategy.HIERARCHICAL:
            _average([member.trunk for member in all_members])
    first = all_members[0]
    return Trained(
        {name: member.losses for name, member in taking_part.items()},
        first.ends.tensors() | first.trunk.tensors(),
    )


def _step(model: UnsplitModel, member: _Member, max_norm: float) -> None:
    """A step of one member, clipped by the norm over its three parts."""
    member.learn(model)
    norms = (member.ends.squared_norm(), member.trunk.squared_norm())
    factor = clip_factor(norms, max_norm)
    member.ends.step(factor)
    member.trunk.step(factor)


def _joint_step(
    model: UnsplitModel, members: Sequence[_Member], trunk: Trainee, max_norm: float
) -> None:
    """A step of all members on one trunk, whose gradient is the mean of theirs.

    Each clips its own ends by the norm over them and the trunk; the trunk's gradient is clipped by
    the norm over it and the mean square of theirs.
    """
    for member in members:
        member.learn(model)
    trunk.scale(1 / len(members))
    of_trunk = trunk.squared_norm()
    of_ends = [member.ends.squared_norm() for member in members]
    for member, own in zip(members, of_ends, strict=True):
        member.ends.step(clip_factor((own, of_trunk), max_norm))
    trunk.step(clip_factor((sum(of_ends) / len(members), of_trunk), max_norm))


def _average(adapters: Sequence[Trainee]) -> None:
    tensors = [adapter.tensors() for adapter in adapters]
    mean = {
        name: cast(torch.Tensor, sum(one[name].double() for one in tensors)) / len(tensors)
        for name in tensors[0]
    }
    for adapter in adapters:
        adapter.load(mean)
