"""`python -m nodes.aggregator --config FILE`: the rounds of a run, to their end or until SIGTERM.

Each event of the run is a JSON line on standard output; see `training.aggregation.reports`.
"""

from __future__ import annotations

import asyncio
import sys

import torch

from fedsea_mq.entry import announce, run_process, settings_from_arguments, stop_asked
from fedsea_mq.errors import RoundsExhausted
from fedsea_mq.settings import Settings
from fedsea_mq.training.aggregation.reports import RunEvent, event_fields
from nodes.aggregator.node import AggregatorNode


async def serve(settings: Settings) -> None:
    """Run the rounds. Raises `RoundsExhausted` if the run is given up."""
    torch.set_num_threads(settings.model.threads)
    async with AggregatorNode(settings, _announce_event) as node:
        await node.registered()
        announce(ready="aggregator", node=node.name, run=settings.training.run)
        ended, stopped = asyncio.create_task(node.ended()), asyncio.create_task(stop_asked())
        await asyncio.wait((ended, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not ended.done():
            ended.cancel()
        elif not await ended:
            raise RoundsExhausted("the last attempt of a round came to nothing")


def _announce_event(event: RunEvent) -> None:
    announce(**event_fields(event))


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the process."""
    settings = settings_from_arguments("fedsea_mq aggregator node", arguments)
    return run_process(serve(settings), settings)


if __name__ == "__main__":
    sys.exit(main())
