"""The sections of a configuration that describe a training run."""

from __future__ import annotations

import json
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedsea_mq.model.partition import Part
from fedsea_mq.protocol.bounded import Name
from fedsea_mq.section import Seconds, Section

Rate = Annotated[float, Field(gt=0, le=10)]
Share = Annotated[float, Field(ge=0, le=1)]
Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Strategy(StrEnum):
    """How the clients of a run share the trunk (paper, section on parallel training)."""

    SEQUENTIAL = "sequential"
    CLIENT_BATCH = "client_batch"
    HIERARCHICAL = "hierarchical"


class LoraSection(Section):
    """What LoRA is put where; the same for all parties of a run."""

    rank: Annotated[int, Field(ge=1, le=1024)] = Field(8, description="of an adapter's matrices")
    alpha: Annotated[float, Field(gt=0, le=1e6)] = Field(
        16.0, description="an adapter's product is multiplied by alpha / rank"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="on an adapter's input, in training"
    )
    targets: Annotated[tuple[Projection, ...], Field(min_length=1)] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        description="linear layers of a block that have an adapter",
    )
    rslora: bool = Field(False, description="divide by the root of the rank instead of the rank")
    parts: Annotated[tuple[Part, ...], Field(min_length=1)] = Field(
        (Part.HEAD, Part.TRUNK, Part.TAIL), description="the parts that have an adapter"
    )


class TrainingSection(Section):
    """One run: who takes part, on what, and how each step is taken."""

    run: Name | None = Field(None, description="name of the run; a trunk node trains if it is set")
    member: Name | None = Field(None, description="this client's name in the run")
    clients: Annotated[int, Field(ge=1, le=64)] = Field(2, description="those that `train` starts")
    strategy: Strategy = Field(Strategy.HIERARCHICAL, description="how clients share the trunk")
    task: str = Field("embedded/conversation", description="as for `fedsea eval`; jsonl:PATH, too")
    data: str | None = Field(None, description="the task's file, folder or hub id")
    examples: Annotated[int, Field(ge=1, le=1 << 20)] | None = Field(
        None,
        description="records or questions to draw examples from, for all clients; all if absent",
    )
    alpha: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        None, description="shards by class, from a Dirichlet distribution; even ones if absent"
    )
    shard: Annotated[int, Field(ge=0, le=1023)] | None = Field(
        None, description="which of `clients` shards is this client's; all examples if absent"
    )
    validation: Annotated[int, Field(ge=0, le=1 << 20)] = Field(
        0, description="examples, of records that no client trains on, to tell the loss on"
    )
    batch_size: Annotated[int, Field(ge=1, le=1024)] = Field(4, description="sequences of a batch")
    accumulate: Annotated[int, Field(ge=1, le=1024)] = Field(1, description="batches of a step")
    learning_rate: Rate = Field(1e-4, description="AdamW's")
    weight_decay: Annotated[float, Field(ge=0, le=10)] = Field(0.01, description="AdamW's")
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = Field(
        "constant_with_warmup", description="of the learning rate, over all steps of the run"
    )
    warmup_steps: Annotated[int, Field(ge=0, le=1 << 31)] = Field(
        0, description="in which the learning rate rises from 0"
    )
    max_norm: Annotated[float, Field(gt=0, le=1e6)] = Field(
        1.0, description="of a step's gradients over head, trunk and tail"
    )
    dtype: Literal["fp32", "bf16"] = Field(
        "fp32", description="of products in training; adapters and optimisers stay fp32"
    )
    recomputes: bool = Field(False, description="compute activations twice instead of keeping them")
    gradient_noise: Annotated[float, Field(ge=0, le=1e3)] = Field(
        0.0, description="times the RMS of the gradient that the tail sends to the trunk"
    )
    max_positions: Annotated[int, Field(ge=1, le=1 << 20)] = Field(
        1 << 15, description="positions of all passes that wait for their gradient at the trunk"
    )
    patience_s: Seconds = Field(
        10.0, description="how long joint steps wait for a member that is silent"
    )
    out: Path = Field(Path("runs"), description="folder for states, adapters and reports")
    resume: Annotated[bool, Field(strict=True)] = Field(
        False, description="go on from the states in `out`; without it, a run must be a new one"
    )
    seed: Annotated[int, Field(ge=0, le=2**31)] = Field(
        0, description="of adapters, data order, shards and dropout; never of the noise"
    )


class FederationSection(Section):
    """Rounds and averaging; the same for all parties of a run."""

    rounds: Annotated[int, Field(ge=1, le=1 << 20)] = Field(
        10, description="averages until the run is over"
    )
    local_steps: Annotated[int, Field(ge=1, le=1 << 20)] = Field(
        20, description="optimiser steps of each client in a round; a checkpoint follows each round"
    )
    min_clients: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="no round begins with fewer; training.clients if absent"
    )
    min_updates: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="no round counts with fewer; training.clients if absent"
    )
    fraction: Share = Field(1.0, description="of the clients there are, sampled for a round")
    quorum: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="of those sampled, whose answers close a round at once"
    )
    training_s: Seconds = Field(600.0, description="deadline of a round")
    aggregation_s: Seconds = Field(60.0, description="deadline of averaging")
    max_attempts: Annotated[int, Field(ge=1, le=1024)] = Field(
        10, description="of one round, before the run is given up"
    )
    optimizer: Literal["fedavg", "fedadam", "fedyogi"] = Field(
        "fedavg", description="what the aggregator does with the mean of the updates"
    )
    learning_rate: Rate = Field(1.0, description="of the aggregator's optimiser")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="of fedavg")
    proximal: Annotated[float, Field(ge=0, le=1e3)] = Field(0.0, description="FedProx's mu")
    personal: tuple[str, ...] = Field(
        (), description="patterns of adapters that stay with their client"
    )
    max_update_norm: Annotated[float, Field(gt=0, le=1e6)] = Field(
        100.0, description="an update of a larger norm is scaled down to it, and reported"
    )
    secure: bool = Field(False, description="the aggregator learns the sum of updates alone")
    threshold: Annotated[int, Field(ge=2, le=1024)] | None = Field(
        None, description="of secure: clients that must stay to the end; two thirds if absent"
    )

    @model_validator(mode="after")
    def _rates_go_with_the_optimizer(self) -> Self:
        if self.momentum and self.optimizer != "fedavg":
            raise ValueError("momentum is of optimizer fedavg")
        return self


def agreed(training: TrainingSection, lora: LoraSection, federation: FederationSection) -> str:
    """A digest of what all parties of a run must have in common."""
    said = {
        "strategy": training.strategy,
        "seed": training.seed,
        "lora": lora.model_dump(mode="json"),
        "federation": federation.model_dump(mode="json"),
    }
    return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
