"""The one thread on which a node computes, so that the event loop never does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager


def _never() -> bool:
    return False


@asynccontextmanager
async def compute_thread(
    name: str, is_stuck: Callable[[], bool] = _never
) -> AsyncIterator[Executor]:
    """A thread of that name; on exit its last step is awaited off the loop, unless it is stuck."""
    executor = ThreadPoolExecutor(1, thread_name_prefix=name)
    try:
        yield executor
    finally:
        if is_stuck():
            executor.shutdown(wait=False)
        else:
            await asyncio.get_running_loop().run_in_executor(None, executor.shutdown)
