"""Times a system whose model is next to nothing: what is left is what the system costs."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Final

from fedsea_mq.cli.plan.random_model import write_narrow
from fedsea_mq.cli.plan.token_times import client_peak_bytes, time_tokens, trunk_peak_bytes
from fedsea_mq.cli.processes import LocalSystem
from fedsea_mq.planning.fitting import SystemRun
from fedsea_mq.settings import NOISE_OFF, Settings
from fedsea_mq.transport.status import StatusWatch
from nodes import ClientNode

_REQUESTS: Final = 12
_NEW: Final = 32
_STATUS_TRIPS: Final = 200
_HEARTBEAT_MS: Final = 200


async def time_system(settings: Settings) -> SystemRun:
    """Start a broker, a trunk node and clients on this machine, and ask them for tokens.

    Raises:
        ProcessFailed: one of them ended.
    """
    with tempfile.TemporaryDirectory(prefix="fedsea-plan-") as folder:
        write_narrow(Path(folder))
        async with LocalSystem(_narrow(settings, folder), trunks=1) as system:
            client_bytes = await client_peak_bytes(system, 1, _NEW)
            async with ClientNode(system.settings) as client:
                times = [await time_tokens(client, 1, _NEW) for _ in range(_REQUESTS)]
            async with StatusWatch(system.settings.broker, system.settings.security) as watch:
                status_s = await _status_s(watch)
                trunk_bytes = await trunk_peak_bytes(watch)
    return SystemRun(
        status_s=status_s,
        ttft_s=min(one.ttft_s for one in times),
        tpot_s=min(one.tpot_s for one in times),
        client_process_bytes=client_bytes,
        trunk_process_bytes=trunk_bytes,
    )


def _narrow(settings: Settings, folder: str) -> Settings:
    """The settings for the narrow model, one block a party, past nothing but the broker."""
    return settings.replace(
        model={"path": folder, "head_blocks": 1, "tail_blocks": 1},
        noise=dict(NOISE_OFF),
        broker={"heartbeat_ms": _HEARTBEAT_MS},
        trunk={"adapters": {}},
        client={"adapters": {}, "adapter": None, "direct": False, "speculation": "off"},
        training={"run": None},
    )


async def _status_s(watch: StatusWatch) -> float:
    taken = []
    for _ in range(_STATUS_TRIPS):
        begun = time.perf_counter()
        await watch.report()
        taken.append(time.perf_counter() - begun)
    return min(taken)
