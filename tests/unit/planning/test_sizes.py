"""Sizes from a config alone: LLaMA-2-7B's as published, tiny models' as they load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedsea_mq.model.checkpoint import Checkpoint, read_config
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Cut, Part
from fedsea_mq.model.parts import load_client, load_trunk, weight_bytes
from fedsea_mq.planning.architecture import Architecture
from fedsea_mq.planning.holdings import Holdings
from tests.conftest import MakeModel
from tests.unit.planning.speeds import LLAMA_2_7B

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def test_llama_2_7b_has_its_published_sizes() -> None:
    assert LLAMA_2_7B.parameters == 6_738_415_616
    held = Holdings(LLAMA_2_7B, Numerics("fp16"))
    assert held.kv_bytes(32) == 524_288  # half a MiB a position
    assert held.kv_bytes(1) == 2 * 4096 * 2
    assert LLAMA_2_7B.block_flops == 2 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert held.block_bytes == 2 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096)
    vocabulary = 2 * 32_000 * 4096
    assert held.client_bytes(Cut(1, 1)) == 2 * vocabulary + 2 * held.block_bytes + 2 * 4096
    assert held.trunk_bytes(Cut(1, 1)) == 30 * held.block_bytes


def test_attention_is_counted_by_what_each_position_sees() -> None:
    assert LLAMA_2_7B.attention_flops(1, 9) == 4 * 4096 * 10
    assert LLAMA_2_7B.attention_flops(3, 0) == 4 * 4096 * (1 + 2 + 3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_the_parameters_are_those_in_the_files(
    make_model: MakeModel, family: str, tied: bool
) -> None:
    folder = make_model(family, tie_word_embeddings=tied)
    stored = Checkpoint.open(str(folder)).tensors.values()
    counted = sum(tensor.nbytes for tensor in stored) // 4
    assert Architecture.of(read_config(str(folder))).parameters == counted


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "numerics", [Numerics(), Numerics("bf16"), Numerics(int8_weights=True, int8_kv=True)]
)
def test_weights_and_caches_weigh_what_loaded_parts_do(
    make_model: MakeModel, family: str, tied: bool, numerics: Numerics
) -> None:
    checkpoint = Checkpoint.open(str(make_model(family, tie_word_embeddings=tied)))
    held, cut = Holdings(Architecture.of(checkpoint.config), numerics), Cut(1, 2)
    run = load_trunk(checkpoint, cut, numerics)
    assert held.trunk_bytes(cut) == weight_bytes(run)
    assert held.client_bytes(cut) == weight_bytes(*load_client(checkpoint, cut, numerics))
    trunk = cut.blocks(Part.TRUNK, checkpoint.blocks)
    assert held.kv_bytes(len(trunk)) == run.kv_shape.bytes_per_position


def test_a_config_alone_is_enough(make_model: MakeModel, tmp_path: Path) -> None:
    whole = make_model("qwen3")
    (tmp_path / "config.json").write_bytes((whole / "config.json").read_bytes())
    assert Architecture.of(read_config(str(tmp_path))) == Architecture.of(read_config(str(whole)))


@pytest.mark.parametrize("biased", [{"attention_bias": True}, {"mlp_bias": True}])
def test_biases_count_where_the_config_asks_for_them(
    make_model: MakeModel, biased: dict[str, Any]
) -> None:
    folder = make_model("llama", **biased)
    stored = Checkpoint.open(str(folder)).tensors.values()
    counted = sum(tensor.nbytes for tensor in stored) // 4
    assert Architecture.of(read_config(str(folder))).parameters == counted
