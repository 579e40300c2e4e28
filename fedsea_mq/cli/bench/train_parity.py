"""Split training over processes against the same training on the unsplit model, by strategy."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from fedsea_mq.cli.bench.filed_answers import write_filed_answers
from fedsea_mq.cli.bench.unsplit_training import (
    Batches,
    Trained,
    UnsplitModel,
    UnsplitPlan,
    train_unsplit,
)
from fedsea_mq.cli.output import progress_console
from fedsea_mq.cli.places import Place
from fedsea_mq.cli.train.record import RunRecord
from fedsea_mq.cli.train.run import members_of, run
from fedsea_mq.model.adapters import AdapterFolder
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.lora import Adapter
from fedsea_mq.model.partition import Cut, Part
from fedsea_mq.run_settings import Strategy
from fedsea_mq.settings import NOISE_OFF, Settings
from fedsea_mq.tasks.encoding import Encoded
from fedsea_mq.training.data_order import DataOrder
from fedsea_mq.training.initial_adapters import adapter_shapes, drawn_adapter
from fedsea_mq.training.settings import TrainingSettings
from nodes.trainer.examples import load_examples

_LOCAL_STEPS: Final = 20


@dataclass(frozen=True, slots=True)
class Parity:
    """The largest differences, relative to the unsplit model's figures."""

    max_rel_loss_diff: float
    max_rel_adapter_diff: float
    steps: int


async def train_parity(steps: int) -> dict[str, Parity]:
    """Two members, noise off, fp32 throughout; `steps` optimiser steps of each, by strategy."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="fedsea-parity-") as name:
        folder = Path(name)
        write_filed_answers(folder / "task.jsonl", 100)
        for strategy in Strategy:
            progress_console.print(f"{strategy}, split ...", style="dim")
            settings = _settings(folder, strategy, steps)
            record = await _train_split(settings)
            progress_console.print(f"{strategy}, unsplit ...", style="dim")
            found[str(strategy)] = _compare(settings, record, _train_unsplit(settings))
    return found


def _settings(folder: Path, strategy: Strategy, steps: int) -> Settings:
    return Settings().replace(
        noise=NOISE_OFF,
        client={"wire_dtype": "fp32"},
        training={
            "run": str(strategy),
            "strategy": strategy,
            "clients": 2,
            "task": f"jsonl:{folder / 'task.jsonl'}",
            "batch_size": 2,
            "accumulate": 2,
            "learning_rate": 3e-4,
            "warmup_steps": 10,
            "out": folder / "runs",
        },
        federation={"rounds": max(1, steps // _LOCAL_STEPS), "local_steps": _LOCAL_STEPS},
        log={"level": "warning"},
    )


async def _train_split(settings: Settings) -> RunRecord:
    record = RunRecord()
    await run(settings, Place.LOCAL, record.line)
    return record


def _train_unsplit(settings: Settings) -> Trained:
    checkpoint = Checkpoint.open(settings.model.path)
    cut = Cut(settings.model.head_blocks, settings.model.tail_blocks)
    how = TrainingSettings.of(settings, seed=0, max_positions=1)
    model = UnsplitModel(str(checkpoint.folders[0]), how.lora, range(checkpoint.blocks))
    plan = UnsplitPlan(
        settings.training.strategy,
        settings.federation.rounds,
        settings.federation.local_steps,
        how.optimizer,
        TrainingSettings.of_trunk(settings).optimizer,
        settings.training.max_norm,
    )
    begin = {
        part: drawn_adapter(adapter_shapes(checkpoint, cut, part, how.lora), settings.training.seed)
        for part in Part
    }
    members = {
        name: _batches(settings, checkpoint, name, number)
        for number, name in enumerate(members_of(settings))
    }
    return train_unsplit(
        model, plan, members, begin[Part.HEAD] | begin[Part.TAIL], begin[Part.TRUNK]
    )


def _batches(settings: Settings, checkpoint: Checkpoint, member: str, shard: int) -> Batches:
    """What the member trains on, in the same order; each step as one batch."""
    training = settings.training.model_copy(update={"member": member, "shard": shard})
    examples = load_examples(training, checkpoint).train
    order = DataOrder(len(examples), training.seed, member)
    a_step = training.batch_size * training.accumulate

    def of_step(step: int) -> list[list[Encoded]]:
        return [[examples[number] for number in order.take(step * a_step, a_step)]]

    return of_step


def _compare(settings: Settings, record: RunRecord, unsplit: Trained) -> Parity:
    losses = [
        abs(ours - theirs) / theirs
        for name, member in record.by_name()
        for ours, theirs in zip(member.losses, unsplit.losses[name], strict=True)
    ]
    adapters = _relative(_trained(settings), unsplit.adapter)
    steps = settings.federation.rounds * settings.federation.local_steps
    return Parity(max(losses), max(adapters.values()), steps)


def _trained(settings: Settings) -> Adapter:
    folder = settings.training.out / str(settings.training.run)
    parts = (folder / "head", folder / "trunk" / "adapter", folder / "tail")
    return {name: t for part in parts for name, t in AdapterFolder.open(part).read().items()}


def _relative(ours: Adapter, theirs: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Of each tensor, the difference's norm over the tensor's."""
    assert ours.keys() == theirs.keys()
    return {
        name: float((tensor - theirs[name]).norm() / theirs[name].norm())
        for name, tensor in ours.items()
    }
