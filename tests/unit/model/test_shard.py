"""Three folders that can be handed out separately, and are the whole model again together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedsea_mq.errors import CheckpointError, IllegalCut
from fedsea_mq.model.checkpoint import MANIFEST, Checkpoint
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Cut, Part
from fedsea_mq.model.parts import load_trunk
from fedsea_mq.model.shard import write_shards
from tests.unit.model.split import TOLERANCE, Split, oracle_logits, prompt, unsplit

CUT = Cut(1, 2)
TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def whole(request: pytest.FixtureRequest, make_model: Callable[..., Path], tmp_path: Path) -> Path:
    folder = make_model("llama", tie_word_embeddings=request.param)
    copy = Path(shutil.copytree(folder, tmp_path / "whole"))
    for name in TOKENIZER_FILES:
        (copy / name).write_text("{}")
    return copy


@pytest.fixture
def shards(whole: Path, tmp_path: Path) -> Path:
    write_shards(Checkpoint.open(str(whole)), CUT, tmp_path / "shards")
    return tmp_path / "shards"


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def test_the_trunk_gets_its_blocks_and_nothing_of_the_text_side(shards: Path) -> None:
    assert {name.split(".")[2] for name in stored(shards / "trunk")} == {"1"}
    assert not any((shards / "trunk" / name).exists() for name in TOKENIZER_FILES)
    assert not (shards / "trunk" / "generation_config.json").exists()


@pytest.mark.parametrize("part", ["head", "tail"])
def test_head_and_tail_get_the_tokenizer(shards: Path, part: str) -> None:
    assert all((shards / part / name).exists() for name in TOKENIZER_FILES)


def test_head_has_the_embedding_and_tail_the_lm_head_and_neither_both(shards: Path) -> None:
    head, tail = stored(shards / "head"), stored(shards / "tail")
    assert "model.embed_tokens.weight" in head
    assert {"lm_head.weight", "model.norm.weight"} <= set(tail)
    assert "model.embed_tokens.weight" not in tail
    assert "lm_head.weight" not in head


def test_tensors_are_stored_byte_for_byte(whole: Path, shards: Path) -> None:
    original = stored(whole)
    for part in Part:
        for name, tensor in stored(shards / part).items():
            source = name if name in original else "model.embed_tokens.weight"
            assert torch.equal(tensor, original[source])


def test_shards_have_the_whole_models_fingerprint_each_part_by_itself_too(
    whole: Path, shards: Path
) -> None:
    expected = Checkpoint.open(str(whole)).fingerprint(CUT)
    assert Checkpoint.open(str(shards)).fingerprint(CUT) == expected
    assert Checkpoint.open(str(shards / "trunk")).fingerprint(CUT) == expected


def test_a_client_with_head_and_tail_and_a_node_with_the_trunk_are_the_unsplit_model(
    whole: Path, shards: Path, tmp_path: Path
) -> None:
    shutil.move(shards / "trunk", tmp_path / "node")
    client = Split.load(whole, CUT)
    trunk = load_trunk(Checkpoint.open(str(tmp_path / "node")), CUT, Numerics())
    with pytest.raises(CheckpointError, match="missing"):
        load_trunk(Checkpoint.open(str(shards)), CUT, Numerics())
    split = Split(client.head, trunk, client.tail)
    ids = prompt(12)
    (logits,) = split.step([(split.session(), ids)])
    assert float((logits - oracle_logits(unsplit(whole), ids)).abs().max()) <= TOLERANCE


def test_a_client_loads_from_shards_alone(whole: Path, shards: Path) -> None:
    split, ids = Split.load(shards, CUT), prompt(12)
    (logits,) = split.step([(split.session(), ids)])
    assert float((logits - oracle_logits(unsplit(whole), ids)).abs().max()) <= TOLERANCE


def test_given_another_cut_than_the_shards_were_made_for_then_both_are_named(shards: Path) -> None:
    with pytest.raises(IllegalCut, match=r"1\+1 .* made for 1\+2"):
        Checkpoint.open(str(shards)).fingerprint(Cut(1, 1))


def test_given_another_tensor_than_was_sharded_then_loading_refuses_it(shards: Path) -> None:
    (file,) = (shards / "trunk").glob("*.safetensors")
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 1
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight is not the one sharded"):
        load_trunk(Checkpoint.open(str(shards)), CUT, Numerics())


def test_given_shards_of_two_models_then_they_do_not_open_together(
    shards: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    other = Checkpoint.open(str(make_model("llama", seed=1)))
    write_shards(other, CUT, tmp_path / "other")
    shutil.rmtree(shards / "tail")
    shutil.copytree(tmp_path / "other" / "tail", shards / "tail")
    with pytest.raises(CheckpointError, match="different models or cuts"):
        Checkpoint.open(str(shards))


@pytest.mark.parametrize("content", ["", "[]", '{"part": "head"}', '{"no": "manifest"}'])
def test_given_a_damaged_manifest_then_the_error_names_it(shards: Path, content: str) -> None:
    (shards / "head" / MANIFEST).write_text(content)
    with pytest.raises(CheckpointError, match=MANIFEST):
        Checkpoint.open(str(shards))


def test_shards_cannot_be_sharded_again(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="shards already"):
        write_shards(Checkpoint.open(str(shards)), CUT, tmp_path / "again")


def test_given_a_folder_that_holds_something_then_it_is_left_alone(
    whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="not empty"):
        write_shards(Checkpoint.open(str(whole)), CUT, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_given_a_cut_without_a_trunk_then_nothing_is_written(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(IllegalCut):
        write_shards(Checkpoint.open(str(whole)), Cut(2, 2), tmp_path / "out")
    assert not (tmp_path / "out").exists()
