"""A party's newest two states stay, and none of an attempt that did not count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedsea_mq.errors import CheckpointError
from fedsea_mq.training.saved_states import SavedStates
from fedsea_mq.training.state import STATE, PartState
from fedsea_mq.training.trained_adapter import AdapterState


def state(mark: int) -> dict[str, PartState]:
    return {"trunk": PartState(mark, {"shared": AdapterState(mark, {"a": torch.ones(1)}, {})})}


def test_the_newest_two_stay_and_a_repeated_round_takes_the_place_of_what_it_was(
    tmp_path: Path,
) -> None:
    states = SavedStates(tmp_path / "party")
    assert states.newest(9) is None
    for number in range(1, 4):
        states.save(number, state(number))
    assert {path.name for path in (tmp_path / "party").iterdir()} == {"state-2", "state-3"}
    found = states.newest(2)
    assert found is not None
    assert (found[0], found[1]["trunk"].draws) == (2, 2)
    assert states.newest(1) is None
    # Round 1 is done again: what came after it was of another attempt.
    states.save(2, state(7))
    assert {path.name for path in (tmp_path / "party").iterdir()} == {"state-2"}
    found = states.newest(9)
    assert found is not None
    assert found[1]["trunk"].draws == 7


def test_other_names_are_not_states_and_damage_is_told(tmp_path: Path) -> None:
    states = SavedStates(tmp_path)
    for name in ("state-1.partial", "state-2.gone", "adapter", "state-x"):
        (tmp_path / name).mkdir()
    assert states.newest(9) is None
    states.save(1, state(1))
    (tmp_path / "state-1" / STATE).write_text("{")
    with pytest.raises(CheckpointError):
        states.newest(9)
