"""A training client that is really killed, at a random moment: the run is as if it had not been."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from fedsea_mq.cli.processes import Child
from nodes.trainer import TrainingClient
from tests.integration.scripted_run import ScriptedRun, scripted_run
from tests.integration.test_trainer import left
from tests.unit.training.split_training import check_close

TASK = (
    "training.task=embedded/understanding",
    "training.examples=3",
    "training.member=a",
    "training.batch_size=1",
    "training.accumulate=1",
    "training.max_norm=0.5",
    "client.give_up_s=60",
    "client.request_timeout_s=2",
    "log.level=warning",
)


def adapters(run: ScriptedRun, out: Path) -> dict[str, torch.Tensor]:
    return {**left(out / "run-1" / "members" / "a"), **run.trunk.trunks["a"].adapter.tensors()}


async def test_killed_at_a_random_moment_and_started_again(tmp_path: Path) -> None:
    async with scripted_run("embedded", tmp_path / "undisturbed", *TASK) as run:
        async with TrainingClient(run.settings) as trainer:
            events = [event async for event in trainer.run()]
        undisturbed = adapters(run, tmp_path / "undisturbed")
    # Given a member in a process of its own, killed after some step of the six.
    killed_at = random.randrange(1, 7)
    async with scripted_run("embedded", tmp_path / "killed", *TASK) as run:
        said = []
        for _ in range(2):
            trainer_process = await Child.start("nodes.trainer", "trainer", run.settings, tmp_path)
            ready = await trainer_process.wait_ready()
            async for line in trainer_process.lines():
                said.append(line)
                if [one.get("event") for one in said].count("step") == killed_at:
                    trainer_process.process.kill()
            await trainer_process.process.wait()
        killed = adapters(run, tmp_path / "killed")
        # Then its round is begun again, unless it had handed its update in.
        assert run.aggregator.attempts in (2, 3)
    check_close(killed, undisturbed, 1e-5)
    assert ready["examples"] > 0
    assert [line["event"] for line in said if "event" in line][-1] == "finished"
    # And what is said of a round that is done again is the same.
    losses = {(e.round, e.step): e.loss for e in events if hasattr(e, "step")}
    again = {(one["round"], one["step"]): one["loss"] for one in said if one.get("event") == "step"}
    assert again.keys() == losses.keys(), f"killed after step {killed_at}"
    assert all(abs(again[at] - loss) <= 1e-5 * loss for at, loss in losses.items())
