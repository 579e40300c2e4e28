"""A model on disk: what is refused, and what a fingerprint stands for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedsea_mq.errors import CheckpointError, UnsupportedModel
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Cut, Part
from fedsea_mq.model.parts import load_client, load_trunk

CUT = Cut(1, 1)


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def opened(folder: Path) -> Checkpoint:
    return Checkpoint.open(str(folder))


def edit_config(folder: Path, **keys: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


class TestOpening:
    def test_it_reads_the_config_and_the_table_of_contents(self, folder: Path) -> None:
        checkpoint = opened(folder)
        assert (checkpoint.blocks, checkpoint.hidden, checkpoint.tied) == (4, 64, False)
        assert checkpoint.eos_token_ids == {2}
        stored = checkpoint.tensors["lm_head.weight"]
        assert (stored.shape, stored.nbytes) == ((300, 64), 300 * 64 * 4)

    def test_what_is_loaded_is_what_was_stored(self, folder: Path) -> None:
        names = ["model.layers.2.mlp.up_proj.weight", "model.norm.weight"]
        loaded = opened(folder).load(names, torch.float32, "cpu")
        stored = load_file(folder / "model.safetensors")
        assert sorted(loaded) == sorted(names)
        assert all(torch.equal(loaded[name], stored[name]) for name in names)

    @pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
    def test_given_a_missing_file_then_the_error_names_it(self, folder: Path, missing: str) -> None:
        (folder / missing).unlink()
        with pytest.raises(CheckpointError, match=missing.removeprefix("model")):
            opened(folder)

    def test_given_old_weights_only_then_the_error_says_what_to_do(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="save_pretrained"):
            opened(folder)

    @pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "nowhere", "a/b/c"])
    def test_given_neither_a_folder_nor_a_hub_id_then_the_error_says_so(self, name: str) -> None:
        with pytest.raises(CheckpointError, match="no such folder"):
            Checkpoint.open(name)

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "no such family"}'])
    def test_given_a_config_that_is_none_then_it_is_a_checkpoint_error(
        self, folder: Path, content: str
    ) -> None:
        (folder / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            opened(folder)

    def test_given_a_family_that_was_never_compared_then_it_is_refused_by_name(
        self, folder: Path
    ) -> None:
        (folder / "config.json").write_text(json.dumps({"model_type": "gemma2"}))
        with pytest.raises(UnsupportedModel, match="'gemma2'; supported: llama, mistral"):
            opened(folder)

    def test_given_rope_that_depends_on_the_batch_then_it_is_refused(self, folder: Path) -> None:
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        edit_config(folder, rope_parameters=rope)
        with pytest.raises(UnsupportedModel, match="dynamic"):
            opened(folder)

    def test_given_no_tokenizer_then_the_error_says_where_it_was_looked_for(
        self, folder: Path
    ) -> None:
        with pytest.raises(CheckpointError, match="no tokenizer"):
            _ = opened(folder).tokenizer


class TestDamage:
    @pytest.mark.parametrize(
        ("tensor", "load"),
        [
            ("model.layers.2.mlp.up_proj.weight", load_trunk),
            ("model.embed_tokens.weight", load_client),
            ("lm_head.weight", load_client),
        ],
    )
    def test_given_a_missing_tensor_then_the_part_that_needs_it_names_it(
        self, folder: Path, tensor: str, load: Callable[..., object]
    ) -> None:
        edit_weights(folder, lambda tensors: tensors.pop(tensor))
        with pytest.raises(CheckpointError, match=f"1 tensors missing, first {tensor}"):
            load(opened(folder), CUT, Numerics())

    @pytest.mark.parametrize("load", [load_trunk, load_client])
    def test_given_a_missing_tensor_of_another_part_then_it_is_not_missed(
        self, folder: Path, load: Callable[..., object]
    ) -> None:
        tensor = "model.norm.weight" if load is load_trunk else "model.layers.1.mlp.up_proj.weight"
        edit_weights(folder, lambda tensors: tensors.pop(tensor))
        assert load(opened(folder), CUT, Numerics()) is not None

    @pytest.mark.parametrize("keep", [0, 4, 8, 100])
    def test_given_a_file_cut_in_its_header_then_it_cannot_be_opened(
        self, folder: Path, keep: int
    ) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            opened(folder)

    def test_given_a_header_of_absurd_size_then_it_is_not_read(self, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"\xff" * 7 + b"\x7f" + bytes(100))
        with pytest.raises(CheckpointError, match="header declares"):
            opened(folder)

    def test_given_a_file_cut_in_its_tensors_then_neither_loading_nor_hashing_goes_on(
        self, folder: Path
    ) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load_client(opened(folder), CUT, Numerics())
        with pytest.raises(CheckpointError, match="ends inside tensor"):
            opened(folder).fingerprint(CUT)


class TestFingerprint:
    def test_it_is_the_same_for_the_same_model_and_cut(
        self, folder: Path, tiny_llama: Path
    ) -> None:
        assert opened(folder).fingerprint(CUT) == opened(tiny_llama).fingerprint(Cut(1, 1))

    def test_it_changes_with_one_bit_of_one_weight(self, folder: Path) -> None:
        before = opened(folder).fingerprint(CUT)
        file = folder / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        assert opened(folder).fingerprint(CUT) != before

    def test_it_changes_with_the_cut(self, folder: Path) -> None:
        cuts = [Cut(0, 0), Cut(1, 1), Cut(1, 2), Cut(2, 1)]
        assert len({opened(folder).fingerprint(cut) for cut in cuts}) == len(cuts)

    @pytest.mark.parametrize("keys", [{"rms_norm_eps": 1e-5}, {"max_position_embeddings": 256}])
    def test_it_changes_with_the_config(self, folder: Path, keys: dict[str, Any]) -> None:
        before = opened(folder).fingerprint(CUT)
        edit_config(folder, **keys)
        assert opened(folder).fingerprint(CUT) != before

    @pytest.mark.parametrize(
        "keys",
        [{"transformers_version": "9.9"}, {"_name_or_path": "/elsewhere"}, {"dtype": "float16"}],
    )
    def test_it_does_not_change_with_what_changes_no_result(
        self, folder: Path, keys: dict[str, Any]
    ) -> None:
        before = opened(folder).fingerprint(CUT)
        edit_config(folder, **keys)
        assert opened(folder).fingerprint(CUT) == before

    def test_it_does_not_depend_on_how_the_weights_are_spread_over_files(
        self, folder: Path
    ) -> None:
        before = opened(folder).fingerprint(CUT)
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        for number, name in enumerate(sorted(tensors)):
            save_file({name: tensors[name]}, folder / f"model-{number:05d}.safetensors")
        assert opened(folder).fingerprint(CUT) == before


def test_each_part_names_its_own_tensors_and_together_they_are_the_model(
    tiny_llama: Path,
) -> None:
    checkpoint = opened(tiny_llama)
    named = [name for part in Part for name in checkpoint.names(part, CUT)]
    assert sorted(named) == sorted(checkpoint.tensors)


def test_end_tokens_come_from_the_generation_config_first(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert opened(folder).eos_token_ids == {7, 8}
