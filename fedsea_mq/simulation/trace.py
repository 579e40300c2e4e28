"""What happened in a simulation, a line an event; kept only where somebody will read it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

_PARTIES: Final = ("fedsea_mq", "broker", "nodes")


@dataclass(slots=True)
class Trace:
    """Lines of time in seconds, process and event. `is_wanted` says whether to make them at all."""

    is_wanted: bool = False
    lines: list[str] = field(default_factory=list)

    def add(self, now: float, who: str, what: str) -> None:
        """Keep a line, if lines are wanted."""
        if self.is_wanted:
            self.lines.append(f"{now:10.4f}  {who:<9} {what}")


class TraceLog(logging.Handler):
    """Tells what the parties log, and which process it was, while inside `with`."""

    def __init__(self, say: Callable[[str, str], None]) -> None:
        super().__init__(logging.INFO)
        self._say = say
        self._before: list[tuple[logging.Logger, int, bool]] = []

    def __enter__(self) -> None:
        for name in _PARTIES:
            logger = logging.getLogger(name)
            self._before.append((logger, logger.level, logger.propagate))
            logger.addHandler(self)
            logger.setLevel(logging.INFO)
            logger.propagate = False

    def __exit__(self, *_: object) -> None:
        for logger, level, propagates in self._before:
            logger.removeHandler(self)
            logger.setLevel(level)
            logger.propagate = propagates

    def emit(self, record: logging.LogRecord) -> None:
        """One record, one line."""
        loop = asyncio._get_running_loop()
        self._say(getattr(loop, "name", "-"), f"log: {record.getMessage()}")
