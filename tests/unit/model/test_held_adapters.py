"""Adapters as a party holds them: split into parts that know their set, and refused where wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedsea_mq.errors import AdapterError
from fedsea_mq.model.adapter_set import STAMP
from fedsea_mq.model.adapters import (
    WEIGHTS,
    AdapterFolder,
    merge_adapters,
    split_adapter,
    write_adapter,
)
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.grouped_lora import GroupedLoraLinear
from fedsea_mq.model.held_adapters import HeldAdapter, hold_adapters
from fedsea_mq.model.lora import LoraSettings
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Cut, Part
from fedsea_mq.model.parts import BlockRun, load_trunk
from tests.adapters import make_adapter
from tests.conftest import MakeModel

CUT = Cut(1, 1)
LORA = LoraSettings(rank=4, alpha=8, targets=("q_proj", "down_proj"), rslora=True)


@pytest.fixture(scope="module")
def whole(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(make_model("llama"), tmp_path_factory.mktemp("whole"), LORA)


@pytest.fixture
def parts(whole: Path, tmp_path: Path) -> Path:
    assert split_adapter(whole, CUT, 4, tmp_path / "parts") == list(Part)
    return tmp_path / "parts"


def trunk(folder: Path) -> BlockRun:
    return load_trunk(Checkpoint.open(str(folder)), CUT, Numerics())


def test_parts_are_of_the_set_that_the_whole_is_and_merge_into_it_again(
    whole: Path, parts: Path, tmp_path: Path
) -> None:
    merge_adapters([parts / part for part in Part], tmp_path / "merged")
    wanted = AdapterFolder.open(whole).adapter_set()
    assert wanted.blocks == {0, 1, 2, 3}
    for folder in (*(parts / part for part in Part), tmp_path / "merged"):
        assert AdapterFolder.open(folder).adapter_set() == wanted
    assert HeldAdapter.open(parts, 4).of == HeldAdapter.open(whole, 4).of == wanted
    assert AdapterFolder.open(parts / "head").blocks == {0}
    assert AdapterFolder.open(tmp_path / "merged").digest() == AdapterFolder.open(whole).digest()


def test_the_digest_is_of_what_an_adapter_computes(whole: Path, tmp_path: Path) -> None:
    # Given the same numbers elsewhere, stored in other dtypes and under another dropout.
    opened = AdapterFolder.open(whole)
    tensors = {name: tensor.bfloat16() for name, tensor in opened.read().items()}
    write_adapter(tmp_path / "bf16", tensors, LORA)
    floats = {name: tensor.float() for name, tensor in tensors.items()}
    write_adapter(tmp_path / "fp32", floats, replace(LORA, dropout=0.5))
    # Then they are one, and whatever changes what is computed makes them another.
    digest = AdapterFolder.open(tmp_path / "bf16").digest()
    assert AdapterFolder.open(tmp_path / "fp32").digest() == digest != opened.digest()
    write_adapter(tmp_path / "scaled", floats, replace(LORA, alpha=9))
    assert AdapterFolder.open(tmp_path / "scaled").digest() != digest
    floats[min(floats)][0, 0] += 1e-6
    write_adapter(tmp_path / "changed", floats, LORA)
    assert AdapterFolder.open(tmp_path / "changed").digest() != digest


def test_a_part_that_was_written_anew_is_of_its_old_set_no_more(parts: Path) -> None:
    opened = AdapterFolder.open(parts / "head")
    tensors = {name: tensor * 2 for name, tensor in opened.read().items()}
    # Whether by us, who then say nothing of a set,
    write_adapter(parts / "tail", AdapterFolder.open(parts / "tail").read(), LORA)
    assert AdapterFolder.open(parts / "tail").stamp() is None
    # or by somebody who knows nothing of sets.
    stored = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    save_file(stored, parts / "head" / WEIGHTS)
    with pytest.raises(AdapterError, match="changed since"):
        HeldAdapter.open(parts / "head", 4)


def test_parts_of_two_sets_or_not_all_of_one_are_not_merged(
    whole: Path, parts: Path, tmp_path: Path
) -> None:
    other = AdapterFolder.open(whole)
    scaled = {name: tensor * 2 for name, tensor in other.read().items()}
    write_adapter(tmp_path / "scaled", scaled, LORA)
    split_adapter(tmp_path / "scaled", CUT, 4, tmp_path / "others")
    head, middle, tail = (parts / part for part in Part)
    for folders, said in [
        ([head, middle, tmp_path / "others" / "tail"], "not of one set"),
        ([head, tail], "blocks 1, 2 are missing"),
    ]:
        with pytest.raises(AdapterError, match=said):
            merge_adapters(folders, tmp_path / "out")
    shutil.rmtree(tail)
    shutil.copytree(tmp_path / "others" / "tail", tail)
    with pytest.raises(AdapterError, match="not of one set"):
        HeldAdapter.open(parts, 4)
    with pytest.raises(AdapterError, match="of a part already"):
        split_adapter(head, CUT, 4, tmp_path / "out")


def test_a_run_is_wrapped_where_any_of_its_adapters_has_something_and_nowhere_else(
    tiny_llama: Path, whole: Path, parts: Path, tmp_path: Path
) -> None:
    # Given adapters with targets and blocks of their own, one of them for the ends only.
    up = make_adapter(
        tiny_llama, tmp_path / "up", LoraSettings(rank=2, targets=("up_proj",)), blocks=[2]
    )
    ends = make_adapter(
        tiny_llama, tmp_path / "ends", LoraSettings(targets=("k_proj",)), blocks=[0, 3]
    )
    opened = {
        name: HeldAdapter.open(folder, 4)
        for name, folder in {
            "whole": whole,
            "part": parts / "trunk",
            "up": up,
            "ends": ends,
        }.items()
    }
    # When a trunk holds them.
    run = trunk(tiny_llama)
    digests = hold_adapters(run, opened)
    # Then the union of targets is wrapped, and each adapter is where it belongs.
    wrapped = {n: m for n, m in run.named_modules() if isinstance(m, GroupedLoraLinear)}
    assert {name.rpartition(".")[2] for name in wrapped} == {"q_proj", "down_proj", "up_proj"}
    assert {n: set(m.adapters) for n, m in wrapped.items() if n.endswith("up_proj")} == {
        "layers.0.mlp.up_proj": set(),
        "layers.1.mlp.up_proj": {"up"},
    }
    assert digests["whole"] == digests["part"] != digests["up"]
    assert digests["ends"] == ""
    # And a trunk without adapters has no wrapper at all.
    bare = trunk(tiny_llama)
    assert hold_adapters(bare, {}) == {}
    assert bare.adapters is None
    assert not [m for m in bare.modules() if isinstance(m, GroupedLoraLinear)]


def stamped(**said: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / STAMP
        file.write_text(json.dumps(json.loads(file.read_text()) | said))

    return damage


def not_a_number(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    for tensor in tensors.values():
        tensor[0, 0] = torch.nan
    save_file(tensors, folder / WEIGHTS)
    (folder / STAMP).unlink()


def another_parts(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "head", folder)


def another_cuts(folder: Path) -> None:
    shutil.rmtree(folder)
    split_adapter(folder.parent / "whole", Cut(1, 2), 4, folder.parent / "early")
    (folder.parent / "early" / "trunk").rename(folder)


def a_broken_stamp(folder: Path) -> None:
    (folder / STAMP).write_text("{")


WRONG: dict[str, Callable[[Path], None]] = {
    "no such folder": shutil.rmtree,
    "not finite": not_a_number,
    "another part's": another_parts,
    "another cut's": another_cuts,
    "a set that is no digest": stamped(set="formal"),
    "a set without the blocks": stamped(blocks=[0]),
    "a set with blocks beyond the model": stamped(blocks=[1, 2, 4]),
    "a stamp that is no JSON": a_broken_stamp,
}


@pytest.mark.parametrize("damage", WRONG.values(), ids=WRONG)
def test_what_is_not_this_parts_adapter_is_refused(
    tiny_llama: Path, whole: Path, parts: Path, damage: Callable[[Path], None]
) -> None:
    shutil.copytree(whole, parts / "whole")
    damage(parts / "trunk")
    with pytest.raises(AdapterError):
        hold_adapters(trunk(tiny_llama), {"formal": HeldAdapter.open(parts / "trunk", 4)})


def test_adapters_of_another_models_shapes_or_of_dora_are_refused(
    tiny_llama: Path, make_model: MakeModel, tmp_path: Path
) -> None:
    wide = make_adapter(make_model("llama", hidden_size=32), tmp_path / "wide", LORA)
    dora = make_adapter(tiny_llama, tmp_path / "dora", replace(LORA, dora=True))
    for folder, said in ((wide, "64"), (dora, "DoRA")):
        with pytest.raises(AdapterError, match=said):
            hold_adapters(trunk(tiny_llama), {"formal": HeldAdapter.open(folder, 4)})
