"""Adapters on disk: peft reads what is written here, and what peft wrote is read here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from fedsea_mq.errors import AdapterError, CheckpointError
from fedsea_mq.model.adapters import (
    CONFIG,
    WEIGHTS,
    AdapterFolder,
    merge_adapters,
    write_adapter,
)
from fedsea_mq.model.lora import LoraSettings, shapes
from fedsea_mq.model.partition import Cut, Part
from fedsea_mq.training.settings import OptimizerSettings, TrainingSettings
from tests.conftest import MakeModel
from tests.unit.model.split import oracle_logits, prompt, unsplit
from tests.unit.training.split_training import SplitTraining
from tests.unit.training.unsplit import samples

CUT = Cut(1, 1)
IDS = prompt(20)
KINDS: dict[str, tuple[dict[str, Any], LoraSettings, frozenset[Part]]] = {
    "attention": ({}, LoraSettings(), frozenset(Part)),
    "tied, all projections, rank-stabilised": (
        {"tie_word_embeddings": True},
        LoraSettings(4, 32, targets=("q_proj", "k_proj", "up_proj", "down_proj"), rslora=True),
        frozenset(Part),
    ),
    "dora": ({}, LoraSettings(dora=True), frozenset({Part.HEAD, Part.TAIL})),
    "head and tail": ({}, LoraSettings(), frozenset({Part.HEAD, Part.TAIL})),
}


def trained(folder: Path, lora: LoraSettings, parts: frozenset[Part]) -> SplitTraining:
    settings = TrainingSettings(lora, parts, OptimizerSettings(1e-2))
    split = SplitTraining.load(folder, CUT, settings)
    for seed in range(3):
        split.step(samples(2, seed))
    return split


def written(split: SplitTraining, lora: LoraSettings, out: Path) -> list[Path]:
    """A folder for each part that has an adapter."""
    folders = []
    for number, adapter in enumerate(split.adapters):
        if adapter.trains:
            folders.append(out / str(number))
            write_adapter(folders[-1], adapter.tensors(), lora)
    return folders


def loaded(folder: Path, adapter: Path) -> Any:
    """The unsplit model with an adapter, as anyone would load it."""
    return PeftModel.from_pretrained(unsplit(folder), adapter).eval()


@pytest.mark.parametrize(("config", "lora", "parts"), KINDS.values(), ids=KINDS)
def test_the_merged_adapter_gives_the_split_models_logits_on_the_unsplit_model(
    make_model: MakeModel,
    tmp_path: Path,
    config: dict[str, Any],
    lora: LoraSettings,
    parts: frozenset[Part],
) -> None:
    # Given a split model that learned something, and its parts' adapters on disk.
    folder = make_model("llama", **config)
    split = trained(folder, lora, parts)
    # When they are merged.
    merge_adapters(written(split, lora, tmp_path), tmp_path / "merged")
    # Then peft's unsplit model says the same, and not what the base model says.
    ours = split.logits(IDS)
    theirs = oracle_logits(loaded(folder, tmp_path / "merged"), IDS)
    assert float((ours - theirs).abs().max()) <= 1e-4
    assert float((ours - oracle_logits(unsplit(folder), IDS)).abs().max()) > 0.1


def test_a_part_alone_loads_on_the_unsplit_model_without_a_missing_key(
    tiny_llama: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    lora = LoraSettings()
    split = trained(tiny_llama, lora, frozenset({Part.TRUNK}))
    (folder,) = written(split, lora, tmp_path)
    theirs = oracle_logits(loaded(tiny_llama, folder), IDS)
    assert float((split.logits(IDS) - theirs).abs().max()) <= 1e-4
    assert not [warning for warning in recwarn if "missing" in str(warning.message)]


def test_each_part_takes_its_own_out_of_an_adapter_that_peft_wrote(
    tiny_llama: Path, tmp_path: Path
) -> None:
    # Given an adapter of the whole model, made and saved by peft.
    lora = LoraSettings(rank=4)
    model = get_peft_model(unsplit(tiny_llama), lora.config(range(4)))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.1)
    model.save_pretrained(tmp_path)
    # When the parts load what is theirs.
    opened = AdapterFolder.open(tmp_path)
    assert opened.blocks == {0, 1, 2, 3}
    split = SplitTraining.load(tiny_llama, CUT, TrainingSettings(opened.settings))
    for adapter in split.adapters:
        adapter.load(opened.read_for(shapes(adapter.tensors())))
    # Then the split model is peft's model.
    ours = split.logits(IDS)
    assert float((ours - oracle_logits(model.eval(), IDS)).abs().max()) <= 1e-4


def test_what_is_written_is_read_back_bit_for_bit(tiny_llama: Path, tmp_path: Path) -> None:
    lora = LoraSettings(2, 5, 0.1, ("down_proj", "q_proj"), rslora=True, dora=True)
    split = trained(tiny_llama, lora, frozenset({Part.TAIL}))
    tensors = split.tail.adapter.tensors()
    write_adapter(tmp_path, tensors, lora)
    opened = AdapterFolder.open(tmp_path)
    assert opened.settings == lora
    assert opened.blocks == {3}
    read = opened.read()
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


@pytest.fixture
def good(tiny_llama: Path, tmp_path: Path) -> Path:
    split = SplitTraining.load(tiny_llama, CUT, TrainingSettings())
    write_adapter(tmp_path / "good", split.head.adapter.tensors(), LoraSettings())
    return tmp_path / "good"


def config_with(**said: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / CONFIG
        file.write_text(json.dumps(json.loads(file.read_text()) | said))

    return damage


def tensors_with(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return damage


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
DAMAGES: dict[str, Callable[[Path], None]] = {
    "no config": lambda folder: (folder / CONFIG).unlink(),
    "a config that is no JSON": lambda folder: (folder / CONFIG).write_text("{") and None,
    "a config that is a list": lambda folder: (folder / CONFIG).write_text("[]") and None,
    "another method": config_with(peft_type="IA3"),
    "rank 0": config_with(r=0),
    "a rank of a billion": config_with(r=10**9),
    "a rank that is text": config_with(r="8"),
    "an alpha that is no number": config_with(lora_alpha=float("nan")),
    "targets by pattern": config_with(target_modules=".*"),
    "a target that is no projection": config_with(target_modules=["lm_head"]),
    "ranks by layer": config_with(rank_pattern={"q_proj": 4}),
    "trained biases": config_with(bias="all"),
    "modules of its own": config_with(modules_to_save=["lm_head"]),
    "base weights changed too": config_with(init_lora_weights="pissa"),
    "a pickle only": lambda folder: (
        (folder / WEIGHTS).rename(folder / "adapter_model.bin") and None
    ),
    "a tensor of no block": tensors_with(lambda t: t.update({"lm_head.weight": torch.ones(2, 2)})),
    "a tensor too few": tensors_with(lambda t: t.pop(A)),
    "another rank than the config's": tensors_with(lambda t: t.update({A: torch.ones(4, 64)})),
    "a vector": tensors_with(lambda t: t.update({A: torch.ones(8)})),
    "integers": tensors_with(lambda t: t.update({A: torch.ones(8, 64, dtype=torch.int32)})),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_adapters_that_are_not_ones_are_refused_unread(
    good: Path, damage: Callable[[Path], None]
) -> None:
    AdapterFolder.open(good)
    damage(good)
    with pytest.raises(AdapterError):
        AdapterFolder.open(good)


def test_adapters_of_another_model_or_of_no_numbers_are_refused(good: Path) -> None:
    opened = AdapterFolder.open(good)
    expected = shapes(opened.read())
    name = A.removeprefix("base_model.model.")
    with pytest.raises(AdapterError):
        opened.read_for(expected | {name: (8, 128)})
    with pytest.raises(AdapterError):
        opened.read_for(expected | {name.replace("layers.0", "layers.1"): (8, 64)})
    tensors_with(lambda t: t[A].fill_(torch.inf))(good)
    with pytest.raises(AdapterError):
        AdapterFolder.open(good).read()
    (good / WEIGHTS).write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError):
        AdapterFolder.open(good)


def test_adapters_that_do_not_belong_together_are_not_merged(
    tiny_llama: Path, good: Path, tmp_path: Path
) -> None:
    other = LoraSettings(rank=4)
    split = SplitTraining.load(tiny_llama, CUT, TrainingSettings(other))
    write_adapter(tmp_path / "other", split.tail.adapter.tensors(), other)
    for folders in ([good, tmp_path / "other"], [good, good], []):
        with pytest.raises(AdapterError):
            merge_adapters(folders, tmp_path / "out")
    with pytest.raises(AdapterError):
        write_adapter(tmp_path / "out", {}, other)
    assert not (tmp_path / "out").exists()
