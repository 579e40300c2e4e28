"""A batcher without a thread: its steps take virtual time."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Self, cast

from fedsea_mq.serving.batcher import Batcher
from fedsea_mq.serving.scheduler import StepLimits
from fedsea_mq.serving.work import SlicedWork

# Never started: no thread is.
_NO_THREAD: Final = ThreadPoolExecutor(1)


class VirtualBatcher(Batcher):
    """Plans and runs steps as a batcher does, on the loop, when the thread would have.

    What a step says it takes, by `spend`, is when its results are handed over.
    """

    def __init__(self, limits: StepLimits, *, max_wait_s: float = 0.0, depth: int = 1) -> None:
        super().__init__(
            _NO_THREAD, limits, max_wait_s=max_wait_s, depth=depth, clock=self._virtual_now
        )
        self._changed = cast(threading.Condition, _Wake(self._wake))
        self._busy_until = 0.0
        self._spent = 0.0
        self._timer: asyncio.Handle | None = None

    def spend(self, seconds: float) -> None:
        """What is computed now takes so long."""
        self._spent += seconds

    def _virtual_now(self) -> float:
        return asyncio.get_running_loop().time() + self._spent

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._thread_done = self._loop.create_future()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._stop()
        assert self._thread_done is not None
        if not self._thread_done.done():
            self._thread_done.set_result(None)

    def _wake(self) -> None:
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(max(self._loop.time(), self._busy_until), self._go_on)

    def _go_on(self) -> None:
        assert self._loop is not None
        self._timer = None
        now = self._loop.time()
        if self._stopping or now < self._busy_until:
            return
        turn = self._turn_at(now)
        if isinstance(turn, float):
            if turn != math.inf:
                self._timer = self._loop.call_at(turn, self._go_on)
            return
        self._spent = 0.0
        if isinstance(turn, SlicedWork):
            self._run_slice(turn)
        else:
            self._run_step(turn)
        self._busy_until, self._spent = now + self._spent, 0.0
        self._timer = self._loop.call_at(self._busy_until, self._go_on)

    def _tell(self, call: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None
        self._loop.call_at(self._virtual_now(), call, *arguments)


class _Wake:
    """Stands for the condition that a thread waits for: to notify is to look for work."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.notify = wake

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        return
