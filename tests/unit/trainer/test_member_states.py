"""What a member keeps on disk, whenever it is cut off."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsea_mq.errors import CheckpointError, RevealRefused
from fedsea_mq.training.state import PartState
from fedsea_mq.training.trained_adapter import AdapterState
from nodes.trainer.member_states import LocalRound, MemberStates
from nodes.trainer.secure import RevealLog
from tests.unit.training.secure_rounds import terms

ATTEMPT = bytes(range(16))


def state(steps: int) -> Mapping[str, PartState]:
    tensors = {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.full((2, 3), float(steps))}
    part = PartState(steps, {"default": AdapterState(steps, tensors, {})})
    return {"head": part, "tail": part}


def local_round(number: int, attempt: bytes = ATTEMPT) -> LocalRound:
    update = np.arange(5, dtype=np.float32) + number
    return LocalRound(number, attempt, 10 * (number + 1), 10, 1.5, 2.5, update)


def steps_before(states: MemberStates, number: int) -> tuple[int, int] | None:
    before = states.before(number)
    return None if before is None else (before[0]["head"].draws, before[1])


def test_a_round_begins_at_the_newest_state_that_is_not_after_it(tmp_path: Path) -> None:
    states = MemberStates(tmp_path / "a")
    assert steps_before(states, 0) is None
    for number in (0, 2, 5):
        states.save(state(number), local_round(number))
    # The newest two are kept: before rounds 3 and 6.
    assert [steps_before(states, number) for number in (2, 3, 5, 6, 9)] == [
        None,
        (2, 30),
        (2, 30),
        (5, 60),
        (5, 60),
    ]


def test_what_an_attempt_came_to_is_known_by_the_attempt(tmp_path: Path) -> None:
    states = MemberStates(tmp_path)
    states.save(state(0), local_round(0))
    done = MemberStates(tmp_path).done(0, ATTEMPT)
    assert done is not None
    expected = local_round(0)
    assert np.array_equal(done.update, expected.update)
    assert (done.weight, done.loss, done.norm) == (10, 1.5, 2.5)
    assert states.done(0, bytes(16)) is None
    assert states.done(1, ATTEMPT) is None
    # Another attempt takes its place.
    states.save(state(1), local_round(0, bytes(16)))
    assert states.done(0, ATTEMPT) is None
    assert steps_before(states, 1) == (1, 10)


def test_states_of_another_run_do_not_outlive_this_ones(tmp_path: Path) -> None:
    states = MemberStates(tmp_path)
    for number in (7, 8):
        states.save(state(number), local_round(number))
    states.save(state(0), local_round(0))
    states.save(state(1), local_round(1))
    assert steps_before(states, 9) == (1, 20)


def test_what_a_killed_process_left_half_is_not_read(tmp_path: Path) -> None:
    states = MemberStates(tmp_path)
    states.save(state(0), local_round(0))
    for name in ("partial", "discarded"):
        (tmp_path / name / "parts").mkdir(parents=True)
    assert steps_before(states, 5) == (0, 10)
    states.save(state(1), local_round(1))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["state-1", "state-2"]


@pytest.mark.parametrize("file", ["round.json", "update.safetensors", "parts/training_state.json"])
def test_damage_is_told(tmp_path: Path, file: str) -> None:
    states = MemberStates(tmp_path)
    states.save(state(0), local_round(0))
    (tmp_path / "state-1" / file).write_bytes(b"no")
    with pytest.raises(CheckpointError):
        states.before(1)


def test_a_round_is_unmasked_once_or_for_the_same_survivors(tmp_path: Path) -> None:
    file = tmp_path / "a" / "revealed.json"
    RevealLog(file).admit(terms(), 2, [1, 2, 3])
    # Given the same member after a restart, and another attempt at the round.
    log = RevealLog(file)
    log.admit(terms(attempt=1), 2, [1, 2, 3])
    # When other survivors are named, or the same numbers among other members, or an older round.
    for asked, member, survivors in (
        (terms(attempt=2), 2, [1, 2, 4]),
        (terms(attempt=2), 2, [1, 2, 3, 4]),
        (terms(attempt=2), 3, [1, 2, 3]),
        (terms(members=4, attempt=2), 2, [1, 2, 3]),
        (terms(round=3), 2, [1, 2, 3]),
    ):
        with pytest.raises(RevealRefused):
            log.admit(asked, member, survivors)
    # Then only the next round's may be others.
    log.admit(terms(round=5), 2, [2, 3, 5])
    with pytest.raises(RevealRefused):
        log.admit(terms(round=4), 2, [1, 2, 3])
