"""The adapters that a run begins with have peft's names and shapes, without a weight being read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from fedsea_mq.errors import CheckpointError
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.lora import LoraSettings, shapes
from fedsea_mq.model.partition import Cut, Part
from fedsea_mq.model.shard import write_shards
from fedsea_mq.training.initial_adapters import adapter_shapes, drawn_adapter
from fedsea_mq.training.load import load_grouped_trunk, load_trained_client
from fedsea_mq.training.settings import TrainingSettings
from tests.conftest import MakeModel

CUT = Cut(1, 2)
LORA = LoraSettings(rank=4, targets=("q_proj", "v_proj", "up_proj", "down_proj"))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_names_and_shapes_are_those_that_the_loaded_parts_have(
    make_model: MakeModel, family: str
) -> None:
    checkpoint = Checkpoint.open(str(make_model(family)))
    head, tail = load_trained_client(checkpoint, CUT, TrainingSettings(LORA))
    assert adapter_shapes(checkpoint, CUT, Part.HEAD, LORA) == shapes(head.adapter.tensors())
    assert adapter_shapes(checkpoint, CUT, Part.TAIL, LORA) == shapes(tail.adapter.tensors())


def test_a_trunk_draws_its_adapters_by_the_same_function(tiny_llama: Path) -> None:
    checkpoint = Checkpoint.open(str(tiny_llama))
    trunk = load_grouped_trunk(checkpoint, CUT, TrainingSettings(LORA, seed=5))
    trunk.add("silo")
    expected = drawn_adapter(adapter_shapes(checkpoint, CUT, Part.TRUNK, LORA), 5)
    drawn = trunk.adapters["silo"].tensors()
    assert drawn.keys() == expected.keys()
    assert all(torch.equal(drawn[name], tensor) for name, tensor in expected.items())


def test_a_tensor_follows_from_seed_and_name_alone() -> None:
    shape = {"a.lora_A.weight": (4, 64), "b.lora_A.weight": (4, 64), "a.lora_B.weight": (64, 4)}
    drawn = drawn_adapter(shape, 1)
    alone = drawn_adapter({"b.lora_A.weight": (4, 64)}, 1)
    assert torch.equal(alone["b.lora_A.weight"], drawn["b.lora_A.weight"])
    assert not torch.equal(drawn["a.lora_A.weight"], drawn["b.lora_A.weight"])
    assert not torch.equal(drawn_adapter(shape, 2)["a.lora_A.weight"], drawn["a.lora_A.weight"])
    assert not drawn["a.lora_B.weight"].any()
    # Kaiming's bound with a = sqrt(5): 1 / sqrt(fan in).
    assert 0.1 < float(drawn["a.lora_A.weight"].abs().max()) <= 0.125


def test_shards_of_the_client_are_enough_for_its_adapters(tiny_llama: Path, tmp_path: Path) -> None:
    whole = Checkpoint.open(str(tiny_llama))
    write_shards(whole, CUT, tmp_path)
    shutil.rmtree(tmp_path / Part.TRUNK)
    client = Checkpoint.open(str(tmp_path))
    for part in (Part.HEAD, Part.TAIL):
        assert adapter_shapes(client, CUT, part, LORA) == adapter_shapes(whole, CUT, part, LORA)
    with pytest.raises(CheckpointError, match=r"no matrix model\.layers\.1"):
        adapter_shapes(client, CUT, Part.TRUNK, LORA)
