"""What a batcher runs: a session's positions in a step or more, or other work in slices."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

from fedsea_mq.model.attention import Span
from fedsea_mq.serving.scheduler import Owner

R = TypeVar("R")
# A packed `[total, ...]` input and its spans to one output a span.
Forward = Callable[[torch.Tensor, Sequence[Span]], Sequence[torch.Tensor]]


@dataclass(slots=True, eq=False)
class Work(Generic[R]):
    """One session's positions to compute, in one step or, if they are many, in chunks.

    `inputs` builds the `[count, ...]` input; `finish` turns the forward pass's outputs, one a
    chunk, into the result. Both run on the compute thread. `settle` is called once on the event
    loop, with the result or the exception.
    """

    owner: Owner
    forward: Forward
    span: Span
    inputs: Callable[[], torch.Tensor]
    finish: Callable[[Sequence[torch.Tensor]], R]
    deadline: float = math.inf
    settle: Callable[[R | Exception], None] | None = None
    # When it was queued, by the batcher's clock.
    queued_at: float = 0.0
    _packed: torch.Tensor | None = None
    _outputs: list[torch.Tensor] = field(default_factory=list)

    @property
    def positions(self) -> int:
        """Positions that the work adds to its steps."""
        return self.span.count

    def chunk(self, start: int, count: int) -> tuple[torch.Tensor, Span]:
        """Input and span of `count` positions from the work's `start` on."""
        if self._packed is None:
            self._packed = self.inputs()
        read = min(self.span.read, count)
        whole = self.span
        span = Span(whole.cache, whole.start + start, count, read, whole.adapter)
        return self._packed[start : start + count], span

    def add(self, output: torch.Tensor, *, last: bool) -> R | None:
        """Keep a chunk's output; the result once it is the last."""
        self._outputs.append(output)
        return self.finish(self._outputs) if last else None


@dataclass(slots=True, eq=False)
class SlicedWork(Generic[R]):
    """Work that yields between its slices and returns its result; works do not overlap.

    `settle` is called once on the event loop, with the result or the exception.
    """

    slices: Generator[None, None, R]
    settle: Callable[[R | Exception], None]


def joined(outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The outputs of a work's chunks, `[count, ...]` each, as one."""
    return outputs[0] if len(outputs) == 1 else torch.cat(list(outputs))
