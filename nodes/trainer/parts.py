"""The member's parts of the model in training, and the noise that goes with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedsea_mq.model.calibration import calibration_ids
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.lora import Adapter
from fedsea_mq.model.partition import Cut
from fedsea_mq.privacy.noise import NoiseSource, noise_source, typical_rms
from fedsea_mq.protocol.payload import PayloadSpec
from fedsea_mq.settings import Settings
from fedsea_mq.training.batch import Batch
from fedsea_mq.training.load import load_trained_client
from fedsea_mq.training.seeds import derived_seed
from fedsea_mq.training.settings import TrainingSettings
from fedsea_mq.training.split_step import HeadStep, TailStep
from fedsea_mq.training.state import PartState, restore, state_of


@dataclass(frozen=True, slots=True)
class TrainedParts:
    """Head, tail and noise; `fresh` is where they stood when they were loaded.

    All but the plain numbers is for the compute thread alone.
    """

    checkpoint: Checkpoint
    cut: Cut
    fingerprint: str
    head: HeadStep
    tail: TailStep
    noise: NoiseSource
    head_rms: float
    spec: PayloadSpec
    settings: TrainingSettings
    fresh: Mapping[str, PartState]

    @classmethod
    def load(cls, settings: Settings, member: str) -> TrainedParts:
        """Read head and tail, measure the head's output, and set the noise from it.

        Raises what `Checkpoint.load` and `noise_source` raise.
        """
        model, training = settings.model, settings.training
        cut = Cut(model.head_blocks, model.tail_blocks)
        checkpoint = Checkpoint.open(model.path)
        fingerprint = checkpoint.fingerprint(cut)
        # What waits for its gradient here is one step's; `training.max_positions` is the trunk's.
        one_step = training.batch_size * training.accumulate * checkpoint.max_positions
        seed = derived_seed(training.seed, "member", member)
        how = TrainingSettings.of(settings, seed, one_step)
        head, tail = load_trained_client(checkpoint, cut, how)
        ids = calibration_ids(checkpoint)
        # Adapters add nothing yet: this is the base head, in whatever round the process starts.
        states = head.evaluate(torch.tensor(ids), Batch((len(ids),)))
        rms = typical_rms(states)
        return cls(
            checkpoint,
            cut,
            fingerprint,
            head,
            tail,
            noise_source(settings.noise, rms, checkpoint.hidden, fingerprint),
            rms,
            PayloadSpec(settings.client.wire_dtype, checkpoint.hidden),
            how,
            {"head": state_of(head), "tail": state_of(tail)},
        )

    @property
    def steps(self) -> int:
        """Optimiser steps that the adapters have behind them."""
        return self.tail.adapter.steps

    def adapters(self) -> dict[str, torch.Tensor]:
        """Copies of both adapters, which have no name in common."""
        return {**self.head.adapter.tensors(), **self.tail.adapter.tensors()}

    def load_adapters(self, adapters: Adapter) -> None:
        """Overwrite some of the weights of both, by name; what training remembers stays.

        Raises:
            AdapterError: not finite, or of other shapes.
        """
        for part in (self.head, self.tail):
            own = part.adapter.tensors()
            part.adapter.load({name: adapters.get(name, own[name]) for name in own})

    def state(self) -> dict[str, PartState]:
        """All that training changes. Raises `CheckpointError` between gradients and their step."""
        return {"head": state_of(self.head), "tail": state_of(self.tail)}

    def restore(self, state: Mapping[str, PartState]) -> None:
        """Go on from there; passes and gradients under way are forgotten.

        Raises:
            CheckpointError, AdapterError: a state of other adapters.
        """
        restore(self.head, state["head"])
        restore(self.tail, state["tail"])
