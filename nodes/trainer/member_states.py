"""What a member keeps on disk, so that a process that is killed at any moment changes nothing.

State `n` is that before round `n`: adapters, optimisers, dropout, the place in the data; and what
the round before it came to, so that its update can be sent again as it was. A folder is there whole
or not at all, and the newest two are kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import save_file

from fedsea_mq.errors import CheckpointError
from fedsea_mq.model.safetensors_file import stored_tensors
from fedsea_mq.training.state import PartState, read_state, write_state
from fedsea_mq.training.state_folders import StateFolders

_PARTS: Final = "parts"
_RECORD: Final = "round.json"
_UPDATE: Final = "update.safetensors"


@dataclass(frozen=True, slots=True)
class LocalRound:
    """What a member's steps in one attempt at a round came to.

    `position` counts the examples taken since the run began, `weight` those of this round; `loss`
    is the mean over its steps. `update` is fp32 `[elements]`, clipped; `norm` that before clipping.
    """

    round: int
    attempt: bytes
    position: int
    weight: int
    loss: float
    norm: float
    update: np.ndarray


class MemberStates:
    """The states of one member, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folders = StateFolders(folder)

    def before(self, round_number: int) -> tuple[Mapping[str, PartState], int] | None:
        """The newest state that is not after the beginning of a round, and its place in the data.

        Raises:
            CheckpointError: it is damaged.
        """
        number = self._folders.newest(round_number)
        if number is None:
            return None
        folder = self._folders.path(number)
        parts = read_state(folder / _PARTS)
        if parts.keys() != {"head", "tail"}:
            raise CheckpointError(f"{folder}: not the state of a member")
        return parts, _record(folder).position

    def done(self, round_number: int, attempt: bytes) -> LocalRound | None:
        """What this attempt came to, if its steps are all done.

        Raises:
            CheckpointError: it is damaged.
        """
        if round_number + 1 not in self._folders.numbers:
            return None
        record = _record(self._folders.path(round_number + 1))
        return record if record.attempt == attempt else None

    def save(self, parts: Mapping[str, PartState], done: LocalRound) -> None:
        """Write the state after a round, in place of that after an attempt that came to nothing."""
        said = {name: getattr(done, name) for name in ("round", "position", "weight")}
        said |= {"loss": done.loss, "norm": done.norm, "attempt": done.attempt.hex()}
        with self._folders.writing(done.round + 1) as partial:
            write_state(partial / _PARTS, parts)
            save_file({"update": torch.from_numpy(done.update)}, partial / _UPDATE)
            (partial / _RECORD).write_text(json.dumps(said) + "\n")


def _record(folder: Path) -> LocalRound:
    try:
        said = json.loads((folder / _RECORD).read_text())
        (stored,) = stored_tensors(folder / _UPDATE)
        return LocalRound(
            round=_whole(said, "round"),
            attempt=bytes.fromhex(said["attempt"]),
            position=_whole(said, "position"),
            weight=_whole(said, "weight"),
            loss=float(said["loss"]),
            norm=float(said["norm"]),
            update=stored.read().clone().numpy(),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / _RECORD}: not what a round came to") from error


def _whole(said: Mapping[str, Any], name: str) -> int:
    if type(said[name]) is not int or said[name] < 0:
        raise ValueError(f"{name}: a count expected")
    return int(said[name])
