"""A process that this command started, wherever it runs: it speaks JSON lines."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from signal import Signals
from typing import Any, Final

from fedsea_mq.errors import ProcessFailed

# A large checkpoint is hashed and read first.
_READY_S = 900.0
# From SIGTERM to SIGKILL, besides what a node takes to drain.
STOP_S: Final = 15.0


def end_of(status: int) -> str:
    """How a process ended, by its exit status, that of a signal below 0."""
    return f"ended with {status}" if status >= 0 else f"was ended by {Signals(-status).name}"


class Started(ABC):
    """One process that speaks JSON lines; the first says that it is ready."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready: dict[str, Any] = {}

    async def wait_ready(self) -> dict[str, Any]:
        """Its first line.

        Raises:
            ProcessFailed: it ended first, or took too long; with the end of its log.
        """
        try:
            async with asyncio.timeout(_READY_S):
                self.ready = await self.line()
        except TimeoutError:
            raise ProcessFailed(f"{self.name} was not ready within {_READY_S:g} s") from None
        return self.ready

    async def line(self) -> dict[str, Any]:
        """Its next line. Raises `ProcessFailed` at its end."""
        raw = await self.read_line()
        if not raw:
            status = await self.wait()
            raise ProcessFailed(f"{self.name} {end_of(status)}: {self.log_tail()}")
        line: dict[str, Any] = json.loads(raw)
        return line

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        """Every line until it closes its output."""
        while raw := await self.read_line():
            if raw.endswith(b"\n"):  # one that was killed may end within a line
                yield json.loads(raw)

    @abstractmethod
    async def read_line(self) -> bytes:
        """Its next line as it wrote it; nothing at its end."""

    @abstractmethod
    async def wait(self) -> int:
        """Wait until it has ended: its exit status, that of a signal below 0."""

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether it has not ended, as far as is known here."""

    @property
    @abstractmethod
    def pid(self) -> int | None:
        """Its process id on this machine; nothing if it may run on another."""

    @abstractmethod
    def ask(self, request: dict[str, Any]) -> None:
        """Write a line to its input."""

    @abstractmethod
    async def stop(self, within_s: float = STOP_S) -> int:
        """SIGTERM, then SIGKILL if it does not end; its exit status."""

    @abstractmethod
    def log_tail(self) -> str:
        """The end of what it logged."""
