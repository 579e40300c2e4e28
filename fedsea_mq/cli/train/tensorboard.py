"""A run's curves as TensorBoard event files."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from tensorboardX import SummaryWriter

from fedsea_mq.cli.train.record import RoundSeen, StepSeen, ValidationSeen


class EventFiles:
    """One writer for the run; curves are by member. Use with `with`."""

    def __init__(self, folder: Path, local_steps: int) -> None:
        self._writer = SummaryWriter(str(folder))
        self._local_steps = local_steps

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

    def step(self, seen: StepSeen) -> None:
        """Loss and pace, over the steps of the run."""
        number = seen.round * self._local_steps + seen.step
        self._writer.add_scalar(f"loss/{seen.member}", seen.loss, number)
        self._writer.add_scalar(f"samples_per_s/{seen.member}", seen.samples_per_s, number)

    def closed(self, seen: RoundSeen) -> None:
        """What a round came to, over the rounds."""
        self._writer.add_scalar("round/loss", seen.loss, seen.round)
        self._writer.add_scalar("round/counted", len(seen.counted), seen.round)

    def validated(self, seen: ValidationSeen) -> None:
        """Held-out loss, over the rounds."""
        self._writer.add_scalar(f"validation/{seen.member}", seen.loss, seen.round)
