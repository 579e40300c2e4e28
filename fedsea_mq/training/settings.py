"""How parts are trained: LoRA, optimiser and schedule, numbers, bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum

from fedsea_mq.errors import ConfigError
from fedsea_mq.model.lora import LoraSettings
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Part
from fedsea_mq.run_settings import Strategy
from fedsea_mq.settings import Settings


class Schedule(StrEnum):
    """How the learning rate goes, after a linear warm-up: by transformers' names."""

    CONSTANT = "constant_with_warmup"
    LINEAR = "linear"
    COSINE = "cosine"


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW and its schedule, over `total_steps` optimiser steps; `CONSTANT` needs none.

    Raises `ConfigError` for values out of range.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    schedule: Schedule = Schedule.CONSTANT
    warmup_steps: int = 0
    total_steps: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.learning_rate < math.inf or not 0.0 <= self.weight_decay < math.inf:
            raise ConfigError("learning rate: more than 0; weight decay: 0 or more")
        if self.warmup_steps < 0 or (self.total_steps or self.warmup_steps + 1) <= 0:
            raise ConfigError("warm-up: 0 steps or more; steps in total: more than 0")
        if self.schedule is not Schedule.CONSTANT and self.total_steps is None:
            raise ConfigError(f"schedule {self.schedule} needs the number of steps in total")


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How the parts that one process loads are trained; of all three, `parts` have an adapter.

    `dtype` is `fp32`, or `bf16` for frozen weights in bf16 and products in it (autocast); adapters,
    norms and the states between blocks are fp32 in both. With `recomputes`, a forward pass keeps
    the states between blocks only, and what is inside is computed again for the gradient.
    `max_positions` bounds the passes that wait for their gradient. `seed` is that of dropout, and
    of adapters that are not loaded.

    Raises `ConfigError` for values out of range.
    """

    lora: LoraSettings = field(default_factory=LoraSettings)
    parts: frozenset[Part] = frozenset(Part)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    dtype: str = "fp32"
    device: str = "cpu"
    recomputes: bool = False
    max_positions: int = 1 << 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in ("fp32", "bf16"):
            raise ConfigError(f"training dtype {self.dtype!r}: fp32 or bf16")
        if self.max_positions < 1:
            raise ConfigError("positions that wait for their gradient: at least 1")

    @classmethod
    def of(cls, settings: Settings, seed: int, max_positions: int) -> TrainingSettings:
        """How a run's parties train, by their configuration.

        Raises `ConfigError` as above.
        """
        training, lora, federation = settings.training, settings.lora, settings.federation
        optimizer = OptimizerSettings(
            training.learning_rate,
            training.weight_decay,
            Schedule(training.schedule),
            training.warmup_steps,
            total_steps=federation.rounds * federation.local_steps,
        )
        return cls(
            LoraSettings(lora.rank, lora.alpha, lora.dropout, lora.targets, lora.rslora),
            frozenset(lora.parts),
            optimizer,
            training.dtype,
            settings.model.device,
            training.recomputes,
            max_positions,
            seed,
        )

    @classmethod
    def of_trunk(cls, settings: Settings) -> TrainingSettings:
        """The trunk's: where clients have one adapter in turn, it takes all of their steps."""
        training = settings.training
        own, clients = cls.of(settings, training.seed, training.max_positions), training.clients
        if training.strategy is not Strategy.SEQUENTIAL:
            return own
        optimizer = own.optimizer
        assert optimizer.total_steps is not None
        longer = replace(
            optimizer,
            warmup_steps=optimizer.warmup_steps * clients,
            total_steps=optimizer.total_steps * clients,
        )
        return replace(own, optimizer=longer)

    @property
    def numerics(self) -> Numerics:
        """How the frozen weights are held."""
        return Numerics(self.dtype, self.device, trains=True)
