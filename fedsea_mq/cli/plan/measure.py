"""How fast this machine is, as a `Speed`."""

from __future__ import annotations

import asyncio
import os
import platform
from typing import Any

from fedsea_mq.cli.plan.block_times import time_blocks
from fedsea_mq.cli.plan.system_run import time_system
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.planning.architecture import Architecture
from fedsea_mq.planning.fitting import (
    BlockTimes,
    SystemRun,
    block_rates,
    client_rates,
    in_place,
    system_times,
)
from fedsea_mq.planning.holdings import Holdings
from fedsea_mq.planning.speed import Speed
from fedsea_mq.settings import Settings


async def measure(config: Any, settings: Settings) -> Speed:
    """Measure once, for a model of that config. Takes about half a minute.

    Raises:
        ProcessFailed: a process of the small system ended.
    """
    blocks = await asyncio.to_thread(time_blocks, config, settings)
    return speed_of(config, settings, blocks, await time_system(config, settings))


def speed_of(config: Any, settings: Settings, blocks: BlockTimes, run: SystemRun) -> Speed:
    """The speed that these times show."""
    sizes = Holdings(Architecture.of(config), Numerics.of(settings.model))
    rates = block_rates(blocks, sizes)
    in_loop = Speed(
        processor=platform.processor() or platform.machine(),
        cores=os.cpu_count() or 1,
        model=settings.model,
        blocks=rates,
        client=client_rates(blocks, sizes),
        system=system_times(run, rates),
    )
    return in_loop.model_copy(update={"blocks": in_place(in_loop, sizes, run, blocks.blocks)})
