"""The aggregator's states on disk: whole, the newest two, and of this run or not read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedsea_mq.errors import CheckpointError
from fedsea_mq.training.adapter_layout import AdapterLayout
from fedsea_mq.training.aggregator_state import (
    AggregatorState,
    newest_aggregator,
    save_aggregator,
)
from fedsea_mq.training.rounds import Progress
from fedsea_mq.training.server_optimizers import FedAdam
from fedsea_mq.training.shared_adapters import Shared, SharedAdapters
from fedsea_mq.training.state_folders import StateFolders
from tests.unit.training.adapters import SHAPES, adapters

LAYOUT = AdapterLayout.of(SHAPES)


def state(done: int) -> AggregatorState:
    progress = Progress(done, done + 3, {b"ada": done, b"bob": 1})
    _, moments = FedAdam().step(adapters(done), adapters(done + 1), {})
    return AggregatorState("agreed", progress, Shared(adapters(done), moments, bytes([done]) * 16))


def test_the_newest_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    folders = StateFolders(tmp_path)
    assert newest_aggregator(folders, "agreed", LAYOUT) is None
    for done in range(4):
        save_aggregator(folders, state(done))
    assert folders.numbers == [2, 3]
    assert (folders.newest(), folders.newest(at_most=2), folders.newest(at_most=1)) == (3, 2, None)
    read, expected = newest_aggregator(folders, "agreed", LAYOUT), state(3)
    assert read is not None
    assert read.progress == expected.progress
    assert read.shared.attempt == expected.shared.attempt
    for came, was in (
        (read.shared.adapters, expected.shared.adapters),
        (read.shared.moments, expected.shared.moments),
    ):
        assert came.keys() == was.keys()
        assert all(torch.equal(came[name], was[name]) for name in was)
        assert all(came[name].dtype is was[name].dtype for name in was)


def test_an_optimiser_goes_on_from_a_state_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    def moved(shared: SharedAdapters, number: int) -> None:
        attempt = bytes([number]) * 16
        vector = LAYOUT.flatten(adapters(50 + number, 0.01)).tobytes()
        shared.add(attempt, shared.clipped([vector]), 3)
        shared.average(attempt)
        shared.take(attempt)

    def begun(at: Shared) -> SharedAdapters:
        return SharedAdapters(LAYOUT, FedAdam(), 100.0, at)

    whole = begun(Shared(adapters(0), {}))
    folders = StateFolders(tmp_path)
    for number in range(4):
        moved(whole, number)
        if number == 1:
            save_aggregator(folders, AggregatorState("agreed", Progress(2), whole.now))
    read = newest_aggregator(folders, "agreed", LAYOUT)
    assert read is not None
    resumed = begun(read.shared)
    for number in (2, 3):
        moved(resumed, number)
    assert resumed.vector == whole.vector


def test_what_was_cut_off_while_it_was_written_is_not_there(tmp_path: Path) -> None:
    folders = StateFolders(tmp_path)
    save_aggregator(folders, state(0))
    (tmp_path / "state-1.partial" / "adapters").mkdir(parents=True)
    assert folders.newest() == 0
    save_aggregator(folders, state(1))
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["state-0", "state-1"]


def _without_progress(folder: Path) -> None:
    (folder / "progress.json").unlink()


def _of_another_round(folder: Path) -> None:
    said = json.loads((folder / "progress.json").read_text())
    (folder / "progress.json").write_text(json.dumps({**said, "done": 7}))


def _without_turns(folder: Path) -> None:
    said = json.loads((folder / "progress.json").read_text())
    (folder / "progress.json").write_text(json.dumps({**said, "last_turn": ["ada"]}))


def _without_an_attempt(folder: Path) -> None:
    said = json.loads((folder / "progress.json").read_text())
    (folder / "progress.json").write_text(json.dumps({**said, "attempt": "no hex"}))


@pytest.mark.parametrize(
    "damage", [_without_progress, _of_another_round, _without_turns, _without_an_attempt]
)
def test_a_damaged_state_is_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folders = StateFolders(tmp_path)
    save_aggregator(folders, state(1))
    damage(folders.path(1))
    with pytest.raises(CheckpointError):
        newest_aggregator(folders, "agreed", LAYOUT)


def test_a_state_of_other_settings_or_adapters_is_refused(tmp_path: Path) -> None:
    folders = StateFolders(tmp_path)
    save_aggregator(folders, replace(state(1), agreed="other"))
    with pytest.raises(CheckpointError, match="other settings"):
        newest_aggregator(folders, "agreed", LAYOUT)
    with pytest.raises(CheckpointError, match="is missing"):
        newest_aggregator(folders, "other", AdapterLayout.of({"a": (1,)}))
