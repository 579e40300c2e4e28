"""Every process of a training run is really killed, the command too: the run is the same.

Noise off, fp32 frames. The oracle is the run with all parties in this process, undisturbed.
`make soak-train` does the same at length.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from fedsea_mq.model.adapters import AdapterFolder
from fedsea_mq.settings import Settings
from nodes import AggregatorNode
from nodes.trainer import TrainingClient
from nodes.trainer.events import StepDone
from tests.integration.systems import running
from tests.integration.train_command import RUN, TrainCommand, short_run, train_settings
from tests.unit.training.split_training import check_close

TOLERANCE = 1e-5
MEMBERS = ("member-1", "member-2")
VICTIMS = {
    "broker": "broker",
    "trunk": "nodes.trunk",
    "aggregator": "nodes.aggregator",
    "member": "nodes.trainer",
}
SHORT = ("federation.rounds=4", "federation.local_steps=3")
LONG = ("federation.rounds=24", "federation.local_steps=6")

Losses = dict[str, list[float]]
Adapter = dict[str, torch.Tensor]


async def undisturbed(folder: Path, *overrides: str) -> tuple[Losses, Adapter]:
    """Losses by member, and the adapters of all parts."""
    async with running("embedded", *short_run(folder), *overrides) as system:

        async def losses(number: int, name: str) -> list[float]:
            settings = system.settings.replace(training={"shard": number, "member": name})
            async with TrainingClient(settings) as trainer:
                return [event.loss async for event in trainer.run() if isinstance(event, StepDone)]

        async with AggregatorNode(system.settings) as aggregator:
            await aggregator.registered()
            told = await asyncio.gather(*(losses(*one) for one in enumerate(MEMBERS)))
    return dict(zip(MEMBERS, told, strict=True)), adapter(folder)


def adapter(folder: Path) -> Adapter:
    """Of all parts, where `folder` has the output of runs."""
    run = folder / "runs" / RUN
    parts = (run / "head", run / "trunk" / "adapter", run / "tail")
    return {name: t for part in parts for name, t in AdapterFolder.open(part).read().items()}


def processes(command: int, module: str) -> list[psutil.Process]:
    """Those of a module that the command has started, oldest first."""
    found = []
    for child in psutil.Process(command).children():
        with suppress(psutil.NoSuchProcess):  # one that was killed before, and is being reaped
            if module in child.cmdline():
                found.append(child)
    return found


async def survived(
    settings: Settings, folder: Path, moments: dict[int, str], draw: random.Random
) -> dict[str, Any]:
    """The report of a run in which these are killed, each when so many steps were told.

    Where it is the command, it is started again at once to resume the run.
    """
    told, options = 0, list[str]()
    orphans: list[psutil.Process] = []
    moments = dict(moments)
    while True:
        command = await TrainCommand.start(settings, folder, *options)
        async for line in command.follow():
            told += line.get("event") == "step"
            victim = moments.pop(told, None)
            if victim is None:
                continue
            await asyncio.sleep(draw.uniform(0.0, 0.3))
            if victim == "command":
                orphans += psutil.Process(command.process.pid).children()
                command.process.kill()
            else:
                draw.choice(processes(command.process.pid, VICTIMS[victim])).kill()
        if await command.process.wait() != -signal.SIGKILL:
            break
        options = ["--resume"]
    _, left = psutil.wait_procs(orphans, timeout=30)
    assert not left
    assert not moments
    return await command.report()


def check_same(report: dict[str, Any], losses: Losses, folder: Path, expected: Adapter) -> float:
    """Losses of every step and final adapters; the largest relative difference of a loss."""
    worst = 0.0
    for member, wanted in losses.items():
        assert report["losses"][member] == pytest.approx(wanted, rel=TOLERANCE)
        pairs = zip(report["losses"][member], wanted, strict=True)
        worst = max(worst, *(abs(ours - theirs) / theirs for ours, theirs in pairs))
    check_close(adapter(folder), expected, TOLERANCE)
    return worst


@pytest.mark.parametrize("seed", [1])
async def test_killed_one_after_the_other_and_then_the_command(tmp_path: Path, seed: int) -> None:
    losses, adapters = await undisturbed(tmp_path / "undisturbed", *SHORT)
    # Given a run of which somebody is killed in each of five stretches, in any order.
    draw, folder = random.Random(seed), tmp_path / "killed"
    victims = [*draw.sample([*VICTIMS], len(VICTIMS)), "command"]
    moments = {4 * n + draw.randrange(1, 4): who for n, who in enumerate(victims)}
    report = await survived(train_settings(folder, *SHORT), folder, moments, draw)
    # Then losses and adapters are those of the undisturbed run.
    assert sum(report["restarts"].values()) == len(VICTIMS)
    check_same(report, losses, folder, adapters)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("strategy", ["hierarchical", "client_batch", "sequential"])
async def test_twenty_kills(tmp_path: Path, strategy: str) -> None:
    overrides = (*LONG, f"training.strategy={strategy}")
    losses, adapters = await undisturbed(tmp_path / "undisturbed", *overrides)
    seed = random.randrange(1 << 30)
    sys.stdout.write(f"\n{strategy}, seed {seed}: ")
    draw, folder = random.Random(seed), tmp_path / "killed"
    victims = draw.sample([*VICTIMS, "command"], 5) * 4
    moments = {15 * n + draw.randrange(1, 11): who for n, who in enumerate(victims)}
    began = time.monotonic()
    report = await survived(train_settings(folder, *overrides), folder, moments, draw)
    seconds = time.monotonic() - began
    worst = check_same(report, losses, folder, adapters)
    sys.stdout.write(
        f"{len(moments)} kills in {seconds:.0f} s, {len(report['repeated'])} attempts repeated, "
        f"{report['restarts']} started again, losses differ by {worst:.1e} at most\n"
    )
