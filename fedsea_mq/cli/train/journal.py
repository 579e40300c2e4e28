"""What the processes of a run have told, line by line, in a file beside its states.

So the report of a run that was stopped and resumed is of the whole run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedsea_mq.model.writing import told_if_unwritable


class Journal:
    """Lines with the process that spoke; each is on its way to disk at once. Use with `with`."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> Self:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        # One that was killed while it wrote left half a line, which is then one by itself.
        torn = self._file.exists() and not self._file.read_bytes().endswith(b"\n")
        self._writing = self._file.open("a", buffering=1)
        if torn:
            self._writing.write("\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writing.close()

    def write(self, process: str, line: dict[str, Any]) -> None:
        """Add one. Raises `CheckpointError` if it cannot be written."""
        with told_if_unwritable(self._file):
            self._writing.write(json.dumps({"process": process, **line}) + "\n")

    def read(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """All that were written, but torn ones."""
        for text in self._file.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            yield line.pop("process"), line
