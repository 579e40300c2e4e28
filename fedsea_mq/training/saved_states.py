"""A party's states before rounds: `state-N` folders, of which the newest two stay."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fedsea_mq.training.state import PartState, read_state, write_state

_FOLDER: Final = re.compile(r"state-(\d{1,16})")
_KEPT: Final = 2


class SavedStates:
    """The states of one party of a run, in `folder`; state n is that before round n.

    Two are kept: one party may have to go back to the round that another did not finish.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def newest(self, at_most: int) -> tuple[int, dict[str, PartState]] | None:
        """The newest state of no later round than that, and its number; None if there is none.

        Raises:
            CheckpointError: it is damaged.
        """
        earlier = [number for number in self._numbers() if number <= at_most]
        if not earlier:
            return None
        return max(earlier), read_state(self._path(max(earlier)))

    def save(self, number: int, parts: Mapping[str, PartState]) -> None:
        """Write a state. Those from this round on are of attempts that did not count: they go."""
        for later in self._numbers():
            if later >= number:
                self._remove(later)
        write_state(self._path(number), parts)
        for old in sorted(self._numbers())[:-_KEPT]:
            self._remove(old)

    def _remove(self, number: int) -> None:
        # Renamed first: what is half removed must not be taken for a state.
        path = self._path(number)
        going = path.with_name(f"{path.name}.gone")
        shutil.rmtree(going, ignore_errors=True)
        shutil.rmtree(path.rename(going))

    def _numbers(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        matches = [_FOLDER.fullmatch(path.name) for path in self._folder.iterdir()]
        return [int(match[1]) for match in matches if match is not None]

    def _path(self, number: int) -> Path:
        return self._folder / f"state-{number}"
