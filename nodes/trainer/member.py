"""A member of a run as it was loaded: what all its work in rounds is done with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fedsea_mq.settings import Settings
from fedsea_mq.training.averaging import Personal
from fedsea_mq.training.data_order import DataOrder
from fedsea_mq.training.run_adapters import RunAdapters
from nodes.trainer.compute import Compute
from nodes.trainer.examples import Examples, load_examples
from nodes.trainer.local_work import LocalWork
from nodes.trainer.parts import TrainedParts
from nodes.trainer.secure import RevealLog

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Member:
    """`folder` is where its states and, at the end, its adapters lie."""

    name: str
    settings: Settings
    executor: Executor
    parts: TrainedParts
    examples: Examples
    order: DataOrder
    compute: Compute
    local: LocalWork
    reveals: RevealLog
    folder: Path

    @classmethod
    def load(
        cls, settings: Settings, run: str, name: str, given: Examples | None, executor: Executor
    ) -> Member:
        """Read the model's parts and the examples; for the compute thread."""
        training, federation = settings.training, settings.federation
        parts = TrainedParts.load(settings, name)
        examples = load_examples(training, parts.checkpoint) if given is None else given
        examples = examples.within(min(parts.checkpoint.max_positions, training.max_positions))
        personal = Personal(federation.personal)
        noise, proximal = training.gradient_noise, federation.proximal
        made = RunAdapters.of(run, parts.cut, parts.checkpoint.blocks, settings.lora.parts)
        folder = training.out / run / "members" / name
        return cls(
            name,
            settings,
            executor,
            parts,
            examples,
            DataOrder(len(examples.train), training.seed, name),
            Compute(parts, personal, gradient_noise=noise, proximal=proximal),
            LocalWork(parts, personal, federation.max_update_norm, made, folder),
            RevealLog(folder / "revealed.json"),
            folder,
        )

    async def run(self, work: Callable[[], T]) -> T:
        """Run work on the compute thread."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, work)
