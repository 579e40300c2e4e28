"""What a member keeps on disk, whenever it is cut off."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsea_mq.errors import CheckpointError, MalformedFrame, RevealRefused
from fedsea_mq.training.adapter_layout import AdapterLayout
from fedsea_mq.training.state import PartState
from fedsea_mq.training.trained_adapter import AdapterState
from nodes.trainer.member_states import LocalRound, MemberStates
from nodes.trainer.secure import RevealLog, Seat, SecureAttempt
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
    for name in ("state-2.partial", "going"):
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
    RevealLog(file).admit(4, ["ada", "bob", "cyd"])
    # Given the same member after a restart, and another attempt that numbers members anew.
    log = RevealLog(file)
    log.admit(4, ["bob", "cyd", "ada"])
    # When other survivors are named, or an older round.
    for number, survivors in (
        (4, ["ada", "bob", "dan"]),
        (4, ["ada", "bob", "cyd", "dan"]),
        (4, ["ada", "bob"]),
        (3, ["ada", "bob", "cyd"]),
    ):
        with pytest.raises(RevealRefused):
            log.admit(number, survivors)
    # Then only the next round's may be others.
    log.admit(5, ["bob", "cyd", "eve"])
    with pytest.raises(RevealRefused):
        log.admit(4, ["ada", "bob", "cyd"])


@pytest.mark.parametrize(
    ("number", "member", "roster"),
    [
        (1, "bob", ["ada", "bob", "cyd"]),
        (4, "cyd", ["ada", "bob", "cyd"]),
        (0, "cyd", ["ada", "bob", "cyd"]),
        (2, "bob", ["ada", "bob"]),
    ],
)
def test_a_roster_that_is_not_of_the_terms_is_refused(
    number: int, member: str, roster: list[str]
) -> None:
    layout = AdapterLayout.of({"a": (4,)})
    asked = terms(members=3, layout=layout)
    with pytest.raises(MalformedFrame):
        SecureAttempt(bytes(16), asked, layout, Seat(number, member, roster), 2)
