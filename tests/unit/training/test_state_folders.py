"""States on disk: whole, or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fedsea_mq.errors import CheckpointError
from fedsea_mq.training.state_folders import StateFolders


@pytest.fixture
def full_disk() -> Path:
    disk = Path("/dev/full")
    if not disk.exists():
        pytest.skip("no /dev/full here")
    return disk


def test_a_full_disk_is_told_and_no_state_is_left(tmp_path: Path, full_disk: Path) -> None:
    states = StateFolders(tmp_path / "a")
    with states.writing(1):
        pass

    def write_into(disk: Path) -> None:
        with states.writing(2):
            disk.write_text("a state")

    with pytest.raises(CheckpointError, match="state-2: cannot be written: No space left"):
        write_into(full_disk)
    assert states.numbers == [1]


def test_what_tensors_cannot_be_written_with_is_told_too(tmp_path: Path) -> None:
    states = StateFolders(tmp_path / "a")

    def write() -> None:
        with states.writing(1) as folder:
            save_file({"x": torch.zeros(1)}, folder / "not-there" / "file")

    with pytest.raises(CheckpointError, match="state-1: cannot be written"):
        write()
    assert states.numbers == []
