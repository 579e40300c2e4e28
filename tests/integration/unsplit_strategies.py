"""What each strategy is, unsplit: peft models of the whole, one a client, and their optimisers.

A client's model has its own adapters at head and tail. Those of the trunk are as the strategy
says: the client's own, or one for all. Each has an AdamW of its own, and a step clips by the norm
over all three parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from fedsea_mq.settings import Settings
from fedsea_mq.tasks.encoding import Encoded
from fedsea_mq.training.settings import TrainingSettings
from tests.unit.training.unsplit import Unsplit

Adapter = dict[str, torch.Tensor]
Batches = Sequence[Sequence[Encoded]]


class Trunk:
    """An adapter of the trunk's blocks, with its optimiser."""

    def __init__(self, adapter: Mapping[str, torch.Tensor], settings: Settings) -> None:
        self.adapter = {n: t.detach().clone().requires_grad_() for n, t in adapter.items()}
        self.adamw = adamw(self.adapter.values(), settings)
        self.sequences = 0

    def learn(self, gradients: Mapping[str, torch.Tensor], factor: float) -> None:
        for name, tensor in self.adapter.items():
            tensor.grad = gradients[name] * factor
        self.adamw.step()


class Client:
    """An unsplit model, with the loss and the gradients of its own data."""

    def __init__(self, folder: Path, settings: Settings, ends: Mapping[str, torch.Tensor]) -> None:
        lora = TrainingSettings.of(
            settings, settings.training.seed, settings.training.max_positions
        ).lora
        self._unsplit = Unsplit(folder, lora, range(4))
        self._own = self._unsplit.adapter()
        self.ends = {name: self._own[name] for name in ends}
        with torch.no_grad():
            for name, tensor in ends.items():
                self.ends[name].copy_(tensor)
        self.adamw = adamw(self.ends.values(), settings)
        self.settings = settings
        self._max_norm = settings.training.max_norm

    def gradients(self, batches: Batches, trunk: Trunk) -> tuple[float, Adapter, float]:
        """The loss; the gradients of the trunk's adapter, and the squared norm of the ends'."""
        with torch.no_grad():
            for name, tensor in trunk.adapter.items():
                self._own[name].copy_(tensor)
        for tensor in self._own.values():
            tensor.grad = None
        loss = self._unsplit.loss([one for batch in batches for one in batch])
        loss.backward()
        gradients = {name: self._own[name].grad.clone() for name in trunk.adapter}
        return loss.item(), gradients, squared(t.grad for t in self.ends.values())

    def step(self, factor: float) -> None:
        for tensor in self.ends.values():
            tensor.grad *= factor
        self.adamw.step()

    def factor(self, *squared_norms: float) -> float:
        return min(1.0, self._max_norm / (sum(squared_norms) ** 0.5 + 1e-6))


def adamw(weights: Iterable[torch.Tensor], settings: Settings) -> torch.optim.AdamW:
    training = settings.training
    decay = training.weight_decay
    return torch.optim.AdamW(list(weights), lr=training.learning_rate, weight_decay=decay)


def squared(gradients: Iterable[torch.Tensor]) -> float:
    return float(sum(gradient.double().square().sum() for gradient in gradients))


def step_alone(client: Client, trunk: Trunk, batches: Batches) -> float:
    """`hierarchical` and `sequential`: one client's step, with the trunk's adapter given."""
    loss, gradients, own = client.gradients(batches, trunk)
    factor = client.factor(squared(gradients.values()), own)
    trunk.learn(gradients, factor)
    client.step(factor)
    trunk.sequences += sum(len(batch) for batch in batches)
    return loss


def step_together(clients: Sequence[Client], trunk: Trunk, batches: Sequence[Batches]) -> list:
    """`client_batch`: the trunk learns from the mean of the losses, the ends each from their own.

    The trunk clips by its norm and the mean of the ends'; each client by the trunk's and its own.
    """
    parts = [client.gradients(own, trunk) for client, own in zip(clients, batches, strict=True)]
    mean = {n: sum(part[1][n] for part in parts) / len(parts) for n in trunk.adapter}
    of_trunk = squared(mean.values())
    of_ends = [part[2] for part in parts]
    trunk.learn(mean, clients[0].factor(of_trunk, sum(of_ends) / len(parts)))
    for client, own in zip(clients, of_ends, strict=True):
        client.step(client.factor(of_trunk, own))
    return [part[0] for part in parts]


@torch.no_grad()
def average(trunks: Sequence[Trunk]) -> None:
    """The end of a `hierarchical` round: by the sequences of each; optimisers go on."""
    total = sum(trunk.sequences for trunk in trunks)
    for name in trunks[0].adapter:
        mean = sum(trunk.adapter[name] * (trunk.sequences / total) for trunk in trunks)
        for trunk in trunks:
            trunk.adapter[name].copy_(mean)
    for trunk in trunks:
        trunk.sequences = 0
