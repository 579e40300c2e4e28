"""Batch the work of many sessions into steps on one compute thread.

The trunk runs one batcher over its blocks, a client one over its head and one over its tail. The
event loop never computes: decoding, the forward pass and encoding all happen on the thread, while
the loop receives what the next step will hold.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import torch

from fedsea_mq.errors import NotRunning
from fedsea_mq.model.attention import Span
from fedsea_mq.serving.scheduler import Scheduler

R = TypeVar("R")
# A packed `[total, ...]` input and its spans to one output a span.
Forward = Callable[[torch.Tensor, Sequence[Span]], Sequence[torch.Tensor]]


@dataclass(slots=True)
class Work(Generic[R]):
    """One session's share of a step.

    `inputs` builds the `[count, ...]` input and `finish` turns the forward pass's output for the
    span into the result; both run on the compute thread.
    """

    span: Span
    inputs: Callable[[], torch.Tensor]
    finish: Callable[[torch.Tensor], R]
    result: asyncio.Future[R] = field(default_factory=asyncio.Future)

    @property
    def positions(self) -> int:
        """Positions that the work adds to a step."""
        return self.span.count


@dataclass(slots=True)
class StepStats:
    """Running totals of a batcher, for status and reports."""

    steps: int = 0
    sessions: int = 0
    positions: int = 0
    busy_s: float = 0.0


class Batcher:
    """Runs work in steps; use it with `async with`, submit with `run`."""

    def __init__(self, forward: Forward, executor: Executor, step_positions: int) -> None:
        self._forward = forward
        self._executor = executor
        self._scheduler: Scheduler[Work[Any]] = Scheduler(step_positions)
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.stats = StepStats()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run_steps(), name="fedsea batcher")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None
        while len(self._scheduler):
            _give_up(self._scheduler.next_step())

    async def run(self, work: Work[R]) -> R:
        """Queue `work` and wait for its result.

        Raises:
            NotRunning: the batcher was not entered, or was left.
            Exception: whatever `inputs`, the forward pass or `finish` raised.
        """
        if self._task is None or self._task.done():
            raise NotRunning("the compute loop is not running")
        self._scheduler.add(work)
        self._arrived.set()
        return await work.result

    async def _run_steps(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            # Work whose caller was cancelled while it waited is dropped here.
            step = [work for work in self._scheduler.next_step() if not work.result.done()]
            if not len(self._scheduler):
                self._arrived.clear()
            if not step:
                continue
            try:
                outcomes = await loop.run_in_executor(self._executor, self._compute, step)
            except asyncio.CancelledError:
                _give_up(step)  # nobody will see what the thread still computes
                raise
            self._deliver(step, outcomes)

    def _compute(self, step: list[Work[Any]]) -> list[Any]:
        """One step, on the compute thread: results, or the exception of each work that failed."""
        started = time.perf_counter()
        with torch.inference_mode():
            inputs = [_attempt(work.inputs) for work in step]
            sound = [i for i, value in enumerate(inputs) if not isinstance(value, Exception)]
            outcomes: list[Any] = list(inputs)
            for i, output in zip(sound, self._run_forward(step, inputs, sound), strict=True):
                failed = isinstance(output, Exception)
                outcomes[i] = output if failed else _attempt(step[i].finish, output)
        self.stats.steps += 1
        self.stats.sessions += len(step)
        self.stats.positions += sum(work.positions for work in step)
        self.stats.busy_s += time.perf_counter() - started
        return outcomes

    def _run_forward(
        self, step: list[Work[Any]], inputs: list[Any], sound: list[int]
    ) -> Sequence[Any]:
        """One output, or the exception, for each of the `sound` inputs."""
        if not sound:
            return []
        packed = torch.cat([inputs[i] for i in sound])
        outputs = _attempt(self._forward, packed, [step[i].span for i in sound])
        return [outputs] * len(sound) if isinstance(outputs, Exception) else outputs

    @staticmethod
    def _deliver(step: list[Work[Any]], outcomes: list[Any]) -> None:
        for work, outcome in zip(step, outcomes, strict=True):
            if work.result.done():
                continue
            if isinstance(outcome, Exception):
                work.result.set_exception(outcome)
            else:
                work.result.set_result(outcome)


def _give_up(step: list[Work[Any]]) -> None:
    for work in step:
        if not work.result.done():
            work.result.set_exception(NotRunning("the compute loop was stopped"))


def _attempt(call: Callable[..., Any], *arguments: Any) -> Any:
    """The call's value, or its exception as a value: one session's fault stays its own."""
    try:
        return call(*arguments)
    except Exception as error:  # noqa: BLE001 - handed to the session whose work it was
        return error
