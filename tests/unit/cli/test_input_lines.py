"""Lines from pipes and files: whole, in order, and the end is the end."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from fedsea_mq.cli.input_lines import InputLines


async def rest(lines: InputLines) -> list[str]:
    found = []
    while (line := await lines.next()) is not None:
        found.append(line)
    return found


async def test_lines_of_a_file_come_whole_with_the_last_one_unended(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes("eins\nzw\u00e4i\n\nlast".encode())
    with file.open("rb") as opened:
        assert await rest(InputLines(opened.fileno())) == ["eins", "zw\u00e4i", "", "last"]


async def test_a_line_is_waited_for_and_may_come_in_pieces() -> None:
    here, there = os.pipe()
    lines = InputLines(here)
    waiting = asyncio.create_task(lines.next())
    await asyncio.sleep(0.02)
    os.write(there, b"a li")
    await asyncio.sleep(0.02)
    assert not waiting.done()
    os.write(there, b"ne\nnext\n")
    assert await waiting == "a line"
    os.close(there)
    assert await rest(lines) == ["next"]
    os.close(here)


async def test_who_stops_waiting_leaves_the_next_line_to_others() -> None:
    here, there = os.pipe()
    lines = InputLines(here)
    waiting = asyncio.create_task(lines.next())
    await asyncio.sleep(0.02)
    waiting.cancel()
    await asyncio.wait([waiting])
    os.write(there, b"kept\n")
    assert await lines.next() == "kept"
    os.close(there)
    os.close(here)
