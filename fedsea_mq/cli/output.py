"""How commands speak: results on standard output, progress on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

# Of a table's column: a line and a space on both sides.
_BORDER: Final = 3

console = Console(highlight=False)
progress_console = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json_text(value))


def json_text(value: Any) -> str:
    """A JSON document for a file; a number that is not finite, which JSON has not, is null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: _finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_finite(inner) for inner in value]
        case _:
            return value


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table for people; the first column is left-aligned, the others right-aligned.

    Where the terminal is too narrow it is several, each with the first column: a number that is
    broken into two lines is two numbers.
    """
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [
        max(map(len, " ".join([column, *(row[index] for row in texts)]).split()), default=0)
        for index, column in enumerate(columns)
    ]
    for number, shown in enumerate(_side_by_side(widths, console.width)):
        table = Table(title=Text("" if number else title), title_justify="left")
        first = console.width - 1 - _BORDER - sum(widths[index] + _BORDER for index in shown[1:])
        table.add_column(columns[0], overflow="fold", max_width=max(first, widths[0]))
        for index in shown[1:]:
            table.add_column(columns[index], justify="right", overflow="fold")
        for row in texts:
            table.add_row(*(Text(row[index]) for index in shown))
        console.print(table)


def _side_by_side(widths: Sequence[int], room: int) -> list[list[int]]:
    """Which columns go beside each other, so that they fit: the first one and others."""
    groups = [[0]]
    for index, width in enumerate(widths[1:], start=1):
        taken = sum(widths[one] + _BORDER for one in groups[-1]) + 1
        if len(groups[-1]) > 1 and taken + width + _BORDER > room:
            groups.append([0])
        groups[-1].append(index)
    return groups


def progress_bar() -> Progress:
    """Progress of a counted task, on standard error."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=progress_console,
        transient=True,
    )
