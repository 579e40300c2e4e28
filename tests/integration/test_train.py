"""`fedsea train` from its start to the served adapters; peft on the unsplit model is the oracle."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsea_mq.cli.__main__ import main
from fedsea_mq.cli.train.run import alone_in
from fedsea_mq.errors import AdapterError, AdapterMismatch, FingerprintMismatch, TrainingDiverged
from fedsea_mq.model.adapters import merge_adapters
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.settings import Settings
from fedsea_mq.training.state_folders import StateFolders
from nodes import AggregatorNode
from nodes.aggregator.plan import RunPlan
from nodes.trainer import TrainingClient
from tests.adapters import with_adapter
from tests.integration.aggregator_parties import ScriptedMember
from tests.integration.systems import running
from tests.integration.train_command import RUN, TrainCommand, short_run, steps, train_settings

PROMPT = [5, 17, 29, 8, 40, 41, 3, 12]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The command in this process; its exit status."""
    monkeypatch.setattr("sys.argv", ["fedsea", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


async def test_a_run_from_its_start_to_served_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a run with noise, masked updates, a personal tail, and examples that are held out.
    settings = train_settings(
        tmp_path,
        "noise.mode=relative",
        "federation.secure=true",
        "training.validation=2",
        "federation.personal=['*.layers.[5-9].*']",
    )
    command = await TrainCommand.start(settings, tmp_path)
    report = await command.report()
    check_lines(command.lines, report)
    folder = tmp_path / "runs" / RUN
    check_files(folder, report)

    # When it is asked for again, it is refused; resumed, it is told again and nothing is trained.
    given = ["train", "--config", str(tmp_path / "train.yaml")]
    assert await asyncio.to_thread(call, monkeypatch, *given) == 2
    assert "is there already; go on with --resume" in capsys.readouterr().err
    assert await asyncio.to_thread(call, monkeypatch, *given, "--resume", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    with alone_in(folder):
        assert await asyncio.to_thread(call, monkeypatch, *given, "--resume", "--json") == 2
    assert "another fedsea train is at this run" in capsys.readouterr().err
    assert again["losses"] == report["losses"]
    assert again["rounds"] == report["rounds"]

    await check_served(folder)


def check_lines(lines: list[dict[str, Any]], report: dict[str, Any]) -> None:
    """Every step and round was told, once; the report is what they come to."""
    told = {(one["process"], one["round"], one["step"]) for one in steps(lines)}
    assert told == {(f"member-{m}", r, s) for m in (1, 2) for r in (0, 1) for s in (0, 1)}
    assert report["samples"] == 2 * len(told)
    assert report["bytes_up"] == sum(one["bytes_up"] for one in steps(lines))
    assert [one["round"] for one in report["rounds"]] == [0, 1]
    assert all(one["counted"] == ["member-1", "member-2"] for one in report["rounds"])
    for member in ("member-1", "member-2"):
        losses = report["losses"][member]
        assert np.mean(losses[2:]) < np.mean(losses[:2])
        assert report["held_out"][member].keys() == {"0", "1"}
        assert report["sigma"][member] > 0
    assert not report["restarts"]
    assert not report["repeated"]
    events = [one["event"] for one in lines]
    assert events.count("finished") == 2
    assert events[-1] == "report"


def check_files(folder: Path, report: dict[str, Any]) -> None:
    written = json.loads((folder / "run.json").read_text())
    assert written["losses"] == report["losses"]
    assert (folder / "run.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "tensorboard").iterdir())


async def check_served(folder: Path) -> None:
    """Each party serves its own part, and together they are peft's model of the merged adapter."""
    model = Checkpoint.open("embedded").folders[0]
    for member in ("member-1", "member-2"):
        own = folder / "members" / member
        logits = await served(folder / "trunk" / "adapter", own)
        with torch.no_grad():
            oracle = with_adapter(model, own / "merged")(input_ids=torch.tensor([PROMPT])).logits[
                0, -1
            ]
            plain = with_adapter(model, None)(input_ids=torch.tensor([PROMPT])).logits[0, -1]
        torch.testing.assert_close(logits, oracle, atol=1e-4, rtol=0)
        assert float((oracle - plain).abs().max()) > 1e-2


async def served(trunk: Path, client: Path) -> torch.Tensor:
    """The logits after the prompt of a session with an adapter, whose parts lie in two folders."""
    held = [f"trunk.adapters={{own: {trunk}}}", f"client.adapters={{own: {client}}}"]
    async with running("embedded", *held) as system, system.client.session(16, "own") as session:
        return await session.advance(PROMPT, lambda rows: rows[-1].clone())


def poison(_: str, number: int, adapters: np.ndarray) -> np.ndarray:
    """No numbers in the first round, and far too large ones after it."""
    return np.full_like(adapters, np.nan if number == 0 else 1e3)


async def test_a_run_beside_a_member_that_poisons_on_a_system_that_is_up(tmp_path: Path) -> None:
    # Given a running broker and trunk, and a member that nobody of the run's has started.
    waits = ("federation.min_clients=3", "federation.min_updates=2")
    async with running("embedded", *short_run(tmp_path), *waits) as system:
        plan = RunPlan.of(system.settings)
        stranger = ScriptedMember(system.settings, plan.layout, "stranger", 2, poison)
        poisoning = asyncio.create_task(stranger.run())
        command = await TrainCommand.start(system.settings, tmp_path, "--join")
        report = await command.report()
        await poisoning
        # Then what it sent is told: refused where it is no number, and cut to size where it is.
        of_stranger = [one for one in command.lines if one.get("member") == "stranger"]
        told = [one["event"] for one in of_stranger if one["event"].startswith("update")]
        assert told == ["update_turned_away", "update_counted"]
        assert [one["member"] for one in report["turned_away"]] == ["stranger"]
        (clipped,) = report["clipped"]
        assert clipped["member"] == "stranger"
        assert clipped["norm"] > system.settings.federation.max_update_norm
        assert [one["counted"] for one in report["rounds"]] == [
            ["member-1", "member-2"],
            ["member-1", "member-2", "stranger"],
        ]


async def test_a_run_that_cannot_be_says_why_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = train_settings(tmp_path)
    (tmp_path / "task.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "only"}\n')
    settings.write(tmp_path / "train.yaml")
    given = ["train", "--config", str(tmp_path / "train.yaml")]
    assert await asyncio.to_thread(call, monkeypatch, *given) == 1
    said = capsys.readouterr().err
    assert "task.jsonl:2: answer: Field required" in said
    assert "Traceback" not in said
    # And what was begun of it is no run: the next try is a new one.
    assert not (tmp_path / "runs" / RUN).exists()


async def test_too_few_examples_are_told_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_settings(tmp_path, "training.clients=33").write(tmp_path / "train.yaml")
    monkeypatch.setattr("fedsea_mq.cli.train.command.run", None)
    given = ["train", "--config", str(tmp_path / "train.yaml")]
    assert await asyncio.to_thread(call, monkeypatch, *given) == 2
    assert "33 clients for 32 examples" in capsys.readouterr().err
    given += ["--set", "training.clients=2", "--set", "training.validation=32"]
    assert await asyncio.to_thread(call, monkeypatch, *given) == 2
    assert "32 examples of 32 held out" in capsys.readouterr().err
    assert not (tmp_path / "runs" / RUN).exists()


async def test_a_folder_that_cannot_be_written_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_settings(tmp_path).write(tmp_path / "train.yaml")
    (tmp_path / "runs").write_text("a file where the folder should be")
    given = ["train", "--config", str(tmp_path / "train.yaml")]
    assert await asyncio.to_thread(call, monkeypatch, *given) == 1
    assert f"CheckpointError: {tmp_path / 'runs' / RUN}: cannot" in capsys.readouterr().err


async def solo(settings: Settings, out: Path, **training: Any) -> Path:
    """A run of one member, in this process, on a system that is up; the member's folder."""
    own = {"out": out, "member": "solo", "clients": 1, **training}
    settings = settings.replace(training=own)
    async with AggregatorNode(settings) as aggregator, TrainingClient(settings) as trainer:
        await aggregator.registered()
        async for _ in trainer.run():
            pass
    return out / RUN / "members" / "solo"


async def test_parts_of_two_runs_do_not_go_together(tmp_path: Path) -> None:
    trunk = tmp_path / "runs" / RUN / "trunk" / "adapter"
    async with running("embedded", *short_run(tmp_path), "training.clients=1") as system:
        first = await solo(system.settings, tmp_path / "first")
        second = await solo(system.settings, tmp_path / "second")
    # Whatever their names: the trunk's is now of the second.
    with pytest.raises(AdapterError, match="not of one set"):
        merge_adapters([first / "head", trunk, first / "tail"], tmp_path / "mixed")
    with pytest.raises(AdapterMismatch):
        await served(trunk, first)
    assert (await served(trunk, second)).isfinite().all()


async def test_a_member_that_does_not_fit_or_diverges_ends_with_a_clear_error(
    tmp_path: Path,
) -> None:
    async with running("embedded", *short_run(tmp_path), "training.clients=1") as system:
        settings = system.settings
        with pytest.raises(FingerprintMismatch):
            await solo(settings.replace(model={"head_blocks": 2}), tmp_path / "cut")
        with pytest.raises(TrainingDiverged, match="a smaller training") as ended:
            await solo(settings, tmp_path / "wild", learning_rate=10.0, max_norm=1e6)
    # What is kept is the state before the round in which it did.
    told = re.search(r"in round (\d)", str(ended.value))
    assert told is not None
    kept = StateFolders(tmp_path / "wild" / RUN / "members" / "solo")
    assert (kept.newest() or 0) == int(told[1])
