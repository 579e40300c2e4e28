"""The fenced blocks of the documentation, and what is said about testing each.

A block of commands has a comment right before it, which no reader sees:

    <!-- test: quick -->                    run by `make test`; seconds
    <!-- test: slow -->                     run by `make test-docs`; minutes
    <!-- test: parsed, needs a GPU -->      its commands and options exist; the reason is required

Further lines of the comment are commands that are run before the block, for what a page takes for
granted. Blocks of Python may have one, too: without it they are compiled only.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
]
_SHELL = {"sh", "bash", "console"}
_FENCE = re.compile(
    r"(?:^<!-- test: (?P<mark>[^\n]*?)(?P<before>\n.*?)?\s*-->\n+)?"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


class Mark(StrEnum):
    """How a block is tested."""

    QUICK = "quick"
    SLOW = "slow"
    PARSED = "parsed"


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    language: str
    text: str
    said: str
    before: tuple[str, ...]

    @property
    def place(self) -> str:
        """Where it stands, for whoever mends it."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_shell(self) -> bool:
        return self.language in _SHELL

    @property
    def mark(self) -> Mark | None:
        """Raises `ValueError` for a word that is none, or a block that is not run for no reason."""
        if not self.said:
            return None
        word, _, reason = self.said.partition(",")
        if word == Mark.PARSED and not reason.strip():
            raise ValueError(f"{self.page.name}:{self.line}: parsed only, and why?")
        return Mark(word)

    @property
    def commands(self) -> list[str]:
        """Its commands, each to where bash ends it; of a console block what is typed."""
        lines = self.text.splitlines()
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith(("$ ", "> "))]
        return list(_commands(lines))


def _commands(lines: Iterable[str]) -> Iterator[str]:
    begun: list[str] = []
    for line in lines:
        if not begun and (not line.strip() or line.lstrip().startswith("#")):
            continue
        begun.append(line)
        if not line.endswith("\\") and _is_whole("\n".join(begun)):
            yield "\n".join(begun).strip()
            begun = []
    yield from begun  # unfinished: whoever checks it says so


def _is_whole(command: str) -> bool:
    checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, check=False)
    return checked.returncode == 0


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, from its top."""
    source = page.read_text()
    for found in _FENCE.finditer(source):
        yield Block(
            page=page,
            line=source.count("\n", 0, found.start("language")) + 1,
            language=found["language"],
            text=found["text"],
            said=(found["mark"] or "").strip(),
            before=tuple(line for line in (found["before"] or "").splitlines() if line.strip()),
        )


def every_block() -> list[Block]:
    return [block for page in PAGES for block in blocks(page)]
