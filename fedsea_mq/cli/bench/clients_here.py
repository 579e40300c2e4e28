"""Training runs whose clients are all in this process; broker, trunk and aggregator are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from fedsea_mq.cli.processes import LocalSystem
from fedsea_mq.load.plan import Link
from fedsea_mq.model.adapters import merge_adapters
from fedsea_mq.settings import Settings
from nodes.load.slow_peer_link import link_over
from nodes.trainer import Examples, TrainingClient

_RUN: Final = "run"


@asynccontextmanager
async def trunk_and_aggregator(settings: Settings) -> AsyncIterator[LocalSystem]:
    """A broker, a trunk node that trains, and an aggregator; which may not be ready yet."""
    async with LocalSystem(settings, trunks=1) as system:
        await system.start("nodes.aggregator", "aggregator")
        yield system


@asynccontextmanager
async def clients_here(
    settings: Settings, shards: Mapping[str, Examples], link: Link
) -> AsyncIterator[list[TrainingClient]]:
    """A client for each member's examples, over that link."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                TrainingClient(settings, name, examples, link_over(link, number))
            )
            for number, (name, examples) in enumerate(shards.items())
        ]


async def adapters_of_a_run(settings: Settings, shards: Mapping[str, Examples], out: Path) -> Path:
    """See a run through, kept in `out`; the folder in there with all parts' adapters, merged."""
    await _train_to_the_end(settings.replace(training={"run": _RUN, "out": str(out)}), shards)
    run = out / _RUN
    merged = run / "merged"
    merge_adapters([run / "head", run / "trunk" / "adapter", run / "tail"], merged)
    return merged


async def _train_to_the_end(settings: Settings, shards: Mapping[str, Examples]) -> None:
    async def follow(client: TrainingClient) -> None:
        async for _ in client.run():
            pass

    async with (
        trunk_and_aggregator(settings) as system,
        clients_here(system.settings, shards, Link()) as clients,
        asyncio.TaskGroup() as group,
    ):
        for client in clients:
            group.create_task(follow(client))
