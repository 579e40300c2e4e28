"""The oracle: peft on the unsplit transformers model, padded batches, one optimiser."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, get_scheduler

from fedsea_mq.model.lora import LoraSettings
from fedsea_mq.tasks.encoding import IGNORED, Encoded
from fedsea_mq.training.settings import OptimizerSettings

PREFIX = "base_model.model."


def sample(length: int, answer: int, rng: random.Random, vocab: int = 300) -> Encoded:
    """`answer` of the last tokens are the answer."""
    ids = tuple(rng.randrange(vocab) for _ in range(length))
    return Encoded(ids[: length - answer], ids[length - answer :])


def samples(count: int, seed: int = 0) -> list[Encoded]:
    """Ragged, from 3 to 24 tokens."""
    rng = random.Random(seed)
    lengths = [rng.randint(3, 24) for _ in range(count)]
    return [sample(length, rng.randint(1, min(4, length - 1)), rng) for length in lengths]


class Unsplit:
    """A peft model with LoRA on some blocks, and its loss, padded as anyone would pad."""

    def __init__(self, folder: Path, lora: LoraSettings, blocks: Sequence[int]) -> None:
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model: Any = get_peft_model(base, lora.config(blocks)).train()

    def adapter(self) -> dict[str, torch.Tensor]:
        """The trained tensors by the names of the parts' adapters."""
        return {
            trained_name(name.removeprefix(PREFIX)): p
            for name, p in self.model.named_parameters()
            if p.requires_grad
        }

    @torch.no_grad()
    def copy(self, adapter: dict[str, torch.Tensor]) -> None:
        """Start from this adapter."""
        own = self.adapter()
        assert own.keys() == adapter.keys()
        for name, weight in own.items():
            weight.copy_(adapter[name])

    def loss(self, batch: Sequence[Encoded]) -> torch.Tensor:
        """Mean over the answer tokens of the batch."""
        longest = max(len(one.ids) for one in batch)

        def padded(rows: list[list[int]], by: int) -> torch.Tensor:
            return torch.tensor([row + [by] * (longest - len(row)) for row in rows])

        loss: torch.Tensor = self.model(
            input_ids=padded([list(one.ids) for one in batch], 0),
            labels=padded([list(one.labels) for one in batch], IGNORED),
            attention_mask=padded([[1] * len(one.ids) for one in batch], 0),
        ).loss
        return loss


def trained_name(parameter: str) -> str:
    """What peft's files call a parameter of its modules."""
    return parameter.replace(".default", "").replace("vector.weight", "vector")


class UnsplitTraining:
    """Steps an unsplit model: AdamW, a schedule of transformers, torch's clipping."""

    def __init__(self, unsplit: Unsplit, settings: OptimizerSettings, max_norm: float) -> None:
        self.unsplit = unsplit
        self._weights = list(unsplit.adapter().values())
        self._max_norm = max_norm
        self._adamw = torch.optim.AdamW(
            self._weights, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._schedule = get_scheduler(
            settings.schedule.value, self._adamw, settings.warmup_steps, settings.total_steps
        )

    def step(self, batch: Sequence[Encoded]) -> float:
        """One optimiser step; the loss before it."""
        loss = self.unsplit.loss(batch)
        loss.backward()
        self.norm = float(torch.nn.utils.clip_grad_norm_(self._weights, self._max_norm))
        self._adamw.step()
        self._schedule.step()
        self._adamw.zero_grad()
        return loss.item()
