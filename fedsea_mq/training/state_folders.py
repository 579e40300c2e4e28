"""The states of one party of a run on disk: `state-<n>` is how it stands before round n."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fedsea_mq.errors import CheckpointError
from fedsea_mq.model.writing import told_if_unwritable

# One more than is needed where all parties agree on the round: they save one after the other.
_KEPT: Final = 2
_STATE: Final = re.compile(r"state-(0|[1-9]\d{0,9})")


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A folder to write into that becomes `folder` at the end, or is not there at all.

    Raises:
        CheckpointError: `folder` is there already, or cannot be written.
    """
    if folder.exists():
        raise CheckpointError(f"{folder}: is there already; each checkpoint has its own folder")
    partial = folder.with_name(f"{folder.name}.partial")
    with told_if_unwritable(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        partial.rename(folder)


class StateFolders:
    """One party's, the newest two of which are kept."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def numbers(self) -> list[int]:
        """Of the states that are there, rising."""
        if not self.root.is_dir():
            return []
        found = (_STATE.fullmatch(folder.name) for folder in self.root.iterdir())
        return sorted(int(match[1]) for match in found if match is not None)

    def path(self, number: int) -> Path:
        """The folder of a state, which may not be there."""
        return self.root / f"state-{number}"

    def newest(self, at_most: int | None = None) -> int | None:
        """The newest state's number, or the newest that is not beyond `at_most`."""
        fitting = [number for number in self.numbers if at_most is None or number <= at_most]
        return max(fitting, default=None)

    @property
    def _going(self) -> Path:
        return self.root / "going"

    @contextmanager
    def writing(self, number: int) -> Iterator[Path]:
        """A folder to write a state into, which is there whole at the end, or not at all.

        States of this number or later are of attempts that came to nothing: they go first.
        """
        shutil.rmtree(self._going, ignore_errors=True)
        for later in self.numbers:
            if later >= number:
                self._discard(later)
        with written_whole(self.path(number)) as partial:
            yield partial
        for old in self.numbers[:-_KEPT]:
            self._discard(old)

    def _discard(self, number: int) -> None:
        # Renamed first: what is half removed must not be taken for a state.
        shutil.rmtree(self.path(number).rename(self._going))
