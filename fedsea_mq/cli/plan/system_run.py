"""Times real systems of random models.

Of one whose model is next to nothing, all is what a system costs. One with blocks of the model's
size shows what these cost between messages, and not in a loop.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, Final

from fedsea_mq.cli.plan.random_model import enough_blocks, write_blocks, write_narrow
from fedsea_mq.cli.plan.token_times import client_peak_bytes, time_tokens, trunk_peak_bytes
from fedsea_mq.cli.processes import LocalSystem
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.planning.architecture import Architecture
from fedsea_mq.planning.fitting import CHUNK, WIDE_NEW, SystemRun
from fedsea_mq.planning.holdings import Holdings
from fedsea_mq.settings import NOISE_OFF, Settings
from fedsea_mq.transport.status import StatusWatch
from nodes import ClientNode

_REQUESTS: Final = 7
_NEW: Final = 32
_STATUS_TRIPS: Final = 200
_HEARTBEAT_MS: Final = 200


async def time_system(config: Any, settings: Settings) -> SystemRun:
    """Start brokers, trunk nodes and clients on this machine, and ask them for tokens.

    Raises:
        ProcessFailed: one of them ended.
    """
    sizes = Holdings(Architecture.of(config), Numerics.of(settings.model))
    with tempfile.TemporaryDirectory(prefix="fedsea-plan-") as name:
        narrow, wide = Path(name) / "narrow", Path(name) / "wide"
        write_narrow(narrow)
        await asyncio.to_thread(
            write_blocks, config, enough_blocks(sizes), wide, sizes.numerics.weights
        )
        async with LocalSystem(_with_model(settings, narrow), trunks=1) as system:
            client_bytes = await client_peak_bytes(system, 1, _NEW)
            ttft_s, tpot_s = await _token_times(system, 1, _NEW)
            async with StatusWatch(system.settings.broker, system.settings.security) as watch:
                status_s = await _status_s(watch)
                trunk_bytes = await trunk_peak_bytes(watch)
        async with LocalSystem(_with_model(settings, wide), trunks=1) as system:
            wide_ttft_s, wide_tpot_s = await _token_times(system, CHUNK, WIDE_NEW)
    return SystemRun(
        status_s=status_s,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        client_process_bytes=client_bytes,
        trunk_process_bytes=trunk_bytes,
        wide_ttft_s=wide_ttft_s,
        wide_tpot_s=wide_tpot_s,
    )


def _with_model(settings: Settings, folder: Path) -> Settings:
    """The settings for a random model at cut 1+1, through the broker and with nothing beside."""
    return settings.replace(
        model={"path": str(folder), "head_blocks": 1, "tail_blocks": 1},
        noise=dict(NOISE_OFF),
        broker={"heartbeat_ms": _HEARTBEAT_MS},
        trunk={"adapters": {}},
        client={"adapters": {}, "adapter": None, "direct": False, "speculation": "off"},
        training={"run": None},
    )


async def _token_times(system: LocalSystem, prompt: int, new: int) -> tuple[float, float]:
    """TTFT and TPOT of the requests that were disturbed least; a first one is not counted."""
    async with ClientNode(system.settings) as client:
        await time_tokens(client, prompt, new)
        times = [await time_tokens(client, prompt, new) for _ in range(_REQUESTS)]
    return min(one.ttft_s for one in times), min(one.tpot_s for one in times)


async def _status_s(watch: StatusWatch) -> float:
    taken = []
    for _ in range(_STATUS_TRIPS):
        begun = time.perf_counter()
        await watch.report()
        taken.append(time.perf_counter() - begun)
    return median(taken)
