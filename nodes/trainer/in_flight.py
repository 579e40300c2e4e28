"""Requests under way that are waited for in an order of one's own, and let go of together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

T = TypeVar("T")


class InFlight:
    """Tasks that are cancelled when it is left, and whose errors are those of whoever awaits."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        # Awaited, so that none computes on what its owner restores next.
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine beside the others."""
        task = asyncio.create_task(work)
        self._tasks.append(task)
        return task
