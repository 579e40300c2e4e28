"""`fedsea train` as a user runs it: its process, its lines, and what it leaves."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fedsea_mq.model.adapters import AdapterFolder
from fedsea_mq.settings import Settings

ROOT = Path(__file__).parents[2]
RUN = "silos"
# Sentences that the embedded model does not know: there is something to learn.
_NAMES = ("Orla", "Pim", "Quill", "Rosa", "Sten", "Tove", "Ulf", "Vera")
_THINGS = ("seven green kites", "a tin of salt", "the north gate", "two slow mules")


def write_task(file: Path) -> Path:
    """Lines of a task of one's own, the same each time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {"prompt": f"{name} asked what was left. It was", "answer": f"{thing}, said {other}."}
        for name, other in zip(_NAMES, reversed(_NAMES), strict=True)
        for thing in _THINGS
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def short_run(folder: Path) -> list[str]:
    """Overrides for two members over the embedded model: noise off, fp32 frames, a few steps."""
    return [
        "noise.mode=off",
        "client.wire_dtype=fp32",
        "client.request_timeout_s=2",
        "log.level=warning",
        f"training.run={RUN}",
        f"training.out={folder / 'runs'}",
        f"training.task=jsonl:{write_task(folder / 'task.jsonl')}",
        "training.batch_size=2",
        "training.learning_rate=1e-3",
        "training.max_norm=0.5",
        "federation.rounds=2",
        "federation.local_steps=2",
    ]


def train_settings(folder: Path, *overrides: str) -> Settings:
    return Settings.load(None, [*short_run(folder), *overrides])


class TrainCommand:
    """The command's process; `lines` is what it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []

    @classmethod
    async def start(cls, settings: Settings, folder: Path, *options: str) -> TrainCommand:
        settings.write(folder / "train.yaml")
        config = ("--config", str(folder / "train.yaml"))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fedsea_mq.cli", "train", *config, "--json", *options),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            limit=1 << 20,
            cwd=ROOT,
        )
        return cls(process)

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        """Each line, until the command ends."""
        assert self.process.stdout is not None
        async for raw in self.process.stdout:
            if raw.endswith(b"\n"):  # one that is killed may end within a line
                self.lines.append(json.loads(raw))
                yield self.lines[-1]

    async def ended(self) -> tuple[int, str]:
        """Its exit status, and what it said to people."""
        async for _ in self.follow():
            pass
        assert self.process.stderr is not None
        said = (await self.process.stderr.read()).decode()
        return await self.process.wait(), said

    async def report(self) -> dict[str, Any]:
        """Its last line, once it has ended well."""
        status, said = await self.ended()
        assert status == 0, said
        return self.lines[-1]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return AdapterFolder.open(folder).read()


def steps(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line.get("event") == "step"]
