"""`fedsea adapters`: split, show, merge; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fedsea_mq.cli.__main__ import app
from fedsea_mq.errors import AdapterError, ConfigError
from fedsea_mq.model.adapters import AdapterFolder
from fedsea_mq.model.lora import LoraSettings
from tests.adapters import make_adapter

LORA = LoraSettings(rank=2, alpha=3, targets=("k_proj", "v_proj"))


def fedsea(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def adapters(*arguments: str | Path) -> str:
    return fedsea("adapters", *arguments)


def test_what_is_split_is_shown_and_merged_again(tiny_llama: Path, tmp_path: Path) -> None:
    whole = make_adapter(tiny_llama, tmp_path / "whole", LORA, blocks=[0, 1, 3])
    cut = ("--model", tiny_llama, "--head", "2", "--tail", "1")
    out = tmp_path / "parts"
    written = adapters("split", whole, "--out", out, *cut).replace("\n", "")
    # The trunk's only block has no adapter, so there is no folder for it.
    assert str(out / "tail") in written
    assert sorted(folder.name for folder in out.iterdir()) == ["head", "tail"]
    said = json.loads(adapters("show", out / "head", "--json"))
    assert (said["rank"], said["alpha"], said["targets"]) == (2, 3, ["k_proj", "v_proj"])
    assert (said["blocks"], said["set_blocks"], said["tensors"]) == ([0, 1], [0, 1, 3], 8)
    assert said["set"] == AdapterFolder.open(whole).digest() != said["digest"]
    assert said["set"][:12] in adapters("show", out / "tail")
    adapters("merge", "--out", tmp_path / "merged", out / "head", out / "tail")
    merged, before = (AdapterFolder.open(one).read() for one in (tmp_path / "merged", whole))
    assert merged.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in merged.items())


def test_folders_with_something_in_them_are_not_written_over(
    tiny_llama: Path, tmp_path: Path
) -> None:
    whole = make_adapter(tiny_llama, tmp_path / "whole", LORA)
    for command in (("merge", "--out", whole, whole), ("split", whole, "--out", whole)):
        with pytest.raises(AdapterError, match="not an empty folder"):
            adapters(*command)


@pytest.mark.parametrize("command", [["generate", "x"], ["chat"], ["eval"]], ids=" ".join)
def test_a_name_that_the_settings_have_no_adapter_for_starts_nothing(command: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"adapter formal is none of client\.adapters"):
        fedsea(*command, "--adapter", "formal")
