"""Lines that a person types, read without a thread that could not be stopped."""

from __future__ import annotations

import asyncio
import os
from typing import Final

_PIECE_BYTES: Final = 1 << 16


class InputLines:
    """The lines of standard input, or of another open file."""

    def __init__(self, file: int = 0) -> None:
        self._file = file
        self._held = b""

    async def next(self) -> str | None:
        """The next line without its end, the last one too if it has none; None after it."""
        while b"\n" not in self._held:
            piece = await self._read()
            if not piece:
                last, self._held = self._held, b""
                return last.decode(errors="replace") if last else None
            self._held += piece
        line, _, self._held = self._held.partition(b"\n")
        return line.decode(errors="replace")

    async def _read(self) -> bytes:
        """Whatever is there, once something is; empty at the end."""
        loop = asyncio.get_running_loop()
        there = asyncio.Event()
        try:
            loop.add_reader(self._file, there.set)
        except PermissionError:  # a regular file: it is always there
            return os.read(self._file, _PIECE_BYTES)
        try:
            await there.wait()
        finally:
            loop.remove_reader(self._file)
        return os.read(self._file, _PIECE_BYTES)
