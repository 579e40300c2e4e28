"""`python -m nodes.aggregator --config FILE`: the rounds of a run, to their end or until SIGTERM.

Each event of the run is a JSON line on standard output; see `training.aggregation.reports`.
"""

from __future__ import annotations

import asyncio
import sys

import torch

from fedsea_mq.entry import (
    announce,
    ready_unless_asked,
    run_process,
    settings_from_arguments,
    stop_asked,
)
from fedsea_mq.errors import RoundsExhausted
from fedsea_mq.settings import Settings
from fedsea_mq.telemetry.endpoint import MetricsEndpoint
from fedsea_mq.training.aggregation.reports import RunEvent, RunGivenUp, event_fields
from nodes.aggregator.node import AggregatorNode


async def serve(settings: Settings) -> None:
    """Run the rounds. Raises `RoundsExhausted` if the run is given up."""
    torch.set_num_threads(settings.model.threads)
    lines = _Lines()
    async with (
        AggregatorNode(settings, lines.event) as node,
        MetricsEndpoint(settings.metrics, node.metrics.registry) as shown,
    ):
        if not await ready_unless_asked(node.registered()):
            return
        run = settings.training.run
        lines.begin(ready="aggregator", node=node.name, run=run, metrics=shown.url)
        ended, stopped = asyncio.create_task(node.ended()), asyncio.create_task(stop_asked())
        await asyncio.wait((ended, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not ended.done():
            ended.cancel()
        elif not await ended:
            raise RoundsExhausted(f"the last attempt of a round came to nothing: {lines.why}")


class _Lines:
    """The node's events as lines, none before the one that says that it is ready."""

    def __init__(self) -> None:
        self._early: list[RunEvent] | None = []
        # Why the run was given up, if it was.
        self.why = ""

    def begin(self, **facts: object) -> None:
        announce(**facts)
        early, self._early = self._early or [], None
        for event in early:
            self.event(event)

    def event(self, event: RunEvent) -> None:
        if isinstance(event, RunGivenUp):
            self.why = event.reason
        if self._early is None:
            announce(**event_fields(event))
        else:
            self._early.append(event)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the process."""
    settings = settings_from_arguments("fedsea_mq aggregator node", arguments)
    return run_process(serve(settings), settings)


if __name__ == "__main__":
    sys.exit(main())
