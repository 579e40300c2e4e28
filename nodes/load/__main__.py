"""`python -m nodes.load --config FILE`: simulated clients, driven by one plan.

The plan comes as one JSON line on standard input (`fedsea_mq.load.plan.LoadPlan`). `progress` goes
to standard output each second, and `tally` (`fedsea_mq.load.tally.Tally`) at the end.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack, suppress
from typing import Final

import torch

from fedsea_mq.entry import announce, run_process, settings_from_arguments
from fedsea_mq.load.plan import LoadPlan
from fedsea_mq.model.attention import compile_attention
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Cut
from fedsea_mq.protocol.payload import PayloadSpec
from fedsea_mq.serving.memory import peak_rss_bytes
from fedsea_mq.settings import Settings
from fedsea_mq.telemetry.endpoint import MetricsEndpoint
from fedsea_mq.transport.direct_links import MAX_LINKS
from fedsea_mq.transport.loop_socket import context_for
from nodes.load.driver import Driver, SimulatedClient
from nodes.load.full import FullClient
from nodes.load.metrics import LoadMetrics
from nodes.load.thin import ThinClient, ThinModel

_PROGRESS_S: Final = 1.0


async def serve(settings: Settings) -> None:
    """Run the plan that comes on standard input."""
    torch.set_num_threads(settings.model.threads)
    metrics = LoadMetrics()
    async with AsyncExitStack() as stack:
        shown = await stack.enter_async_context(MetricsEndpoint(settings.metrics, metrics.registry))
        announce(ready="load", metrics=shown.url)
        line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        plan = LoadPlan.model_validate_json(line)
        clients = await _clients(settings, plan, stack)
        announce(clients=len(clients))
        driver = Driver(plan, clients)
        metrics.watch(driver)
        reports = asyncio.create_task(_report_progress(driver))
        try:
            await driver.run()
        finally:
            reports.cancel()
            with suppress(asyncio.CancelledError):
                await reports
    announce(tally=driver.tally.as_json(), peak_rss=peak_rss_bytes())


async def _clients(
    settings: Settings, plan: LoadPlan, stack: AsyncExitStack
) -> list[SimulatedClient]:
    seeds = [plan.seed * 10_000 + number for number in range(len(plan.sessions))]
    made: list[FullClient] | list[ThinClient]
    if plan.kind == "full":
        compile_attention(Numerics.of(settings.model).kv)
        made = [FullClient(settings, plan.link, seed) for seed in seeds]
    else:
        model = _thin_model(settings)
        links = 1 + (MAX_LINKS if settings.client.direct else 0)
        context = stack.enter_context(context_for(links * len(seeds)))
        made = [ThinClient(settings, model, plan.link, seed, context) for seed in seeds]
    return [await stack.enter_async_context(client) for client in made]


def _thin_model(settings: Settings) -> ThinModel:
    checkpoint = Checkpoint.open(settings.model.path)
    cut = Cut(settings.model.head_blocks, settings.model.tail_blocks)
    spec = PayloadSpec(settings.client.wire_dtype, checkpoint.hidden)
    positions = settings.trunk.max_frame_positions
    return ThinModel.random(checkpoint.fingerprint(cut), spec, positions)


async def _report_progress(driver: Driver) -> None:
    while True:
        await asyncio.sleep(_PROGRESS_S)
        announce(
            progress={
                "tokens": driver.live_tokens,
                "in_flight": driver.in_flight,
                "done": driver.tally.outcomes.total(),
                "errors": driver.tally.errors.total(),
            }
        )


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the process."""
    settings = settings_from_arguments("fedsea_mq load clients", arguments)
    return run_process(serve(settings), settings)


if __name__ == "__main__":
    sys.exit(main())
