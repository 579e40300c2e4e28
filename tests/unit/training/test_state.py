"""Stopping and going on is going on: bit for bit, on a CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedsea_mq.errors import CheckpointError
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.lora import LoraSettings
from fedsea_mq.model.partition import Cut
from fedsea_mq.training.batch import Batch
from fedsea_mq.training.grouped_trunk import GroupedTrunk
from fedsea_mq.training.load import load_grouped_trunk
from fedsea_mq.training.settings import OptimizerSettings, Schedule, TrainingSettings
from fedsea_mq.training.sliced_blocks import finish
from fedsea_mq.training.state import STATE, read_state, restore, state_of, write_state
from tests.unit.training.split_training import ADAPTER, SplitTraining
from tests.unit.training.unsplit import samples

CUT = Cut(1, 1)
SETTINGS = TrainingSettings(
    LoraSettings(dropout=0.2),
    optimizer=OptimizerSettings(1e-2, 0.1, Schedule.COSINE, warmup_steps=2, total_steps=8),
    seed=5,
)


def save(split: SplitTraining, folder: Path) -> None:
    ends = {"head": state_of(split.head), "tail": state_of(split.tail)}
    write_state(folder, {**ends, "trunk": split.trunk.state()})


def resume(split: SplitTraining, folder: Path, passes: int) -> None:
    states = read_state(folder)
    restore(split.head, states["head"])
    restore(split.tail, states["tail"])
    split.trunk.restore(states["trunk"])
    split.passes = passes  # its seeds follow from what was done


def run(split: SplitTraining, steps: range) -> list[float]:
    return [split.step(samples(2, step), samples(1, step + 50)) for step in steps]


@pytest.mark.parametrize("stop", [0, 3], ids=["before the first step", "after three"])
def test_resumed_training_is_the_training_that_was_not_stopped(
    tiny_llama: Path, tmp_path: Path, stop: int
) -> None:
    # Given a run with dropout, a schedule and weight decay, saved on its way.
    whole = SplitTraining.load(tiny_llama, CUT, SETTINGS)
    run(whole, range(stop))
    save(whole, tmp_path / "saved")
    expected = run(whole, range(stop, 7))
    # When parts that began otherwise take up the state.
    resumed = SplitTraining.load(tiny_llama, CUT, replace(SETTINGS))
    run(resumed, range(90, 92))
    resume(resumed, tmp_path / "saved", passes=2 * stop)
    # Then losses and adapters are the same in each bit.
    assert run(resumed, range(stop, 7)) == expected
    theirs = whole.adapter()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in resumed.adapter().items())


def test_a_trunk_of_several_adapters_is_resumed_too(tiny_llama: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, lora=LoraSettings(dropout=0.2))
    names = ("ann", "../bob/é")

    def load() -> GroupedTrunk:
        trunk = load_grouped_trunk(Checkpoint.open(str(tiny_llama)), CUT, settings)
        for name in names:
            trunk.add(name)
        return trunk

    def step(trunk: GroupedTrunk, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        batch = Batch((3, 4), names, (seed, seed + 1))
        finish(trunk.forward("", torch.randn(7, 64, generator=generator), batch))
        finish(trunk.backward("", torch.randn(7, 64, generator=generator)))
        for name in names[: 1 + seed % 2]:
            trunk.adapters[name].step(1.0)
        for name in names[1 + seed % 2 :]:
            trunk.adapters[name].forget()

    whole, resumed = load(), load()
    resumed.add("who was not there")
    for seed in range(3):
        step(whole, seed)
    write_state(tmp_path / "saved", {"trunk": whole.state()})
    resumed.restore(read_state(tmp_path / "saved")["trunk"])
    assert resumed.adapters.keys() == set(names)
    for seed in range(3, 6):
        step(whole, seed)
        step(resumed, seed)
    for name in names:
        ours, theirs = resumed.adapters[name], whole.adapters[name]
        assert ours.steps == theirs.steps
        expected = theirs.tensors()
        assert all(torch.equal(t, expected[n]) for n, t in ours.tensors().items())


def test_states_that_do_not_fit_or_are_damaged_are_refused(
    tiny_llama: Path, tmp_path: Path
) -> None:
    split = SplitTraining.load(tiny_llama, CUT, SETTINGS)
    run(split, range(1))
    save(split, tmp_path / "saved")
    # A folder is never written over, and nothing is left half written.
    with pytest.raises(CheckpointError):
        save(split, tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    states = read_state(tmp_path / "saved")
    # Moments of other weights.
    head = states["head"].adapters["default"]
    first = min(head.moments)
    fewer = {name: tensor for name, tensor in head.moments.items() if name != first}
    wrong = head.moments | {first: torch.zeros(1)}
    foreign = head.moments | {"exp_avg.elsewhere": torch.zeros(1)}
    for moments in (fewer, wrong, foreign):
        bad = replace(states["head"], adapters={"default": replace(head, moments=moments)})
        with pytest.raises(CheckpointError):
            restore(split.head, bad)
    with pytest.raises(CheckpointError):
        restore(split.head, replace(states["head"], adapters={"other": head}))
    # Files that are damaged, or name others.
    file = tmp_path / "saved" / STATE
    said = json.loads(file.read_text())
    for damage in ({"format": 2}, {"parts": 3}, {"parts": {"head": {}}}):
        file.write_text(json.dumps(said | damage))
        with pytest.raises(CheckpointError):
            read_state(tmp_path / "saved")
    said["parts"]["head"]["adapters"][0]["file"] = "../saved/head-0.safetensors"
    file.write_text(json.dumps(said))
    with pytest.raises(CheckpointError):
        read_state(tmp_path / "saved")
    file.write_text("{")
    with pytest.raises(CheckpointError):
        read_state(tmp_path / "saved")


def test_an_adapter_that_is_not_finite_is_no_state_to_go_on_from(
    tiny_llama: Path, tmp_path: Path
) -> None:
    split = SplitTraining.load(tiny_llama, CUT, SETTINGS)
    states = {"head": state_of(split.head)}
    next(iter(states["head"].adapters["default"].adapter.values())).view(-1)[0] = torch.nan
    write_state(tmp_path / "saved", states)
    with pytest.raises(CheckpointError, match=r"head-0\.safetensors: .* not all finite"):
        read_state(tmp_path / "saved")


def test_gradients_that_wait_for_their_step_are_not_lost_in_silence(tiny_llama: Path) -> None:
    split = SplitTraining.load(tiny_llama, CUT, SETTINGS)
    batch = Batch((7,), (ADAPTER,))
    finish(split.trunk.forward("", torch.randn(7, 64), batch))
    finish(split.trunk.backward("", torch.randn(7, 64)))
    with pytest.raises(CheckpointError):
        split.trunk.state()
