"""The Ray cluster that a command uses: one that runs, or one that is started for it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import ray

from fedsea_mq.errors import ConfigError
from fedsea_mq.ray_settings import RaySection

LOOPBACK: Final = "127.0.0.1"
# How Ray is told to start one.
_OWN: Final = "local"


@asynccontextmanager
async def joined(section: RaySection) -> AsyncIterator[str | None]:
    """Be a driver of the cluster: of `ray.address`, RAY_ADDRESS or one started for this process.

    Gives the address that processes listen at: on a cluster of one's own, which is this machine,
    loopback; else nothing, for whatever Ray knows their machine by. In a process that is a driver
    already, its cluster is used, and stays.

    Raises:
        ConfigError: there is no cluster at the address.
    """
    if ray.is_initialized():
        yield None
        return
    address = section.address or os.environ.get("RAY_ADDRESS") or _OWN
    # In a thread, Ray leaves this process's signal handlers alone.
    await asyncio.to_thread(_init, address)
    try:
        yield LOOPBACK if address == _OWN else None
    finally:
        await asyncio.to_thread(ray.shutdown)


def _init(address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read where a cluster is started
    try:
        ray.init(
            address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"ray.address {address}: {error}") from error
