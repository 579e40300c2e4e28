"""A run's curves as TensorBoard event files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tensorboardX import SummaryWriter

from fedsea_mq.cli.train.record import AGGREGATOR


class EventFiles:
    """Curves by member over the steps of the run, and over its rounds. Use with `with`."""

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

    def line(self, name: str, line: Mapping[str, Any]) -> None:
        """Loss and pace of a member's step, its held-out loss, what a round came to."""
        if name == AGGREGATOR:
            self._aggregator_line(line)
        else:
            self._member_line(name, line)

    def _member_line(self, name: str, line: Mapping[str, Any]) -> None:
        match line.get("event"):
            case "step":
                number = line["round"] * self._local_steps + line["step"]
                self._writer.add_scalar(f"loss/{name}", line["loss"], number)
                self._writer.add_scalar(f"gradient_norm/{name}", line["norm"], number)
                self._writer.add_scalar(f"samples_per_s/{name}", line["samples_per_s"], number)
            case "round" if line["validation_loss"] is not None:
                self._writer.add_scalar(f"held_out/{name}", line["validation_loss"], line["round"])

    def _aggregator_line(self, line: Mapping[str, Any]) -> None:
        if line.get("event") == "round_closed":
            self._writer.add_scalar("round/loss", line["loss"], line["round"])
            self._writer.add_scalar("round/counted", len(line["counted"]), line["round"])
