"""The broker's relay against ZeroMQ's own proxy, between the same two ends."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Final

from fedsea_mq.cli.bench.comparison import Comparison, Ratio, Repeat
from fedsea_mq.cli.bench.workbench import Workbench

_SECONDS: Final = 5.0


async def _repeat(bench: Workbench) -> Repeat:
    ours = await _relayed(bench, by_proxy=False)
    theirs = await _relayed(bench, by_proxy=True)
    return {"relay_vs_proxy": ours / theirs}, {
        "broker_relays_per_s": 2 * ours,
        "proxy_relays_per_s": 2 * theirs,
    }


async def _relayed(bench: Workbench, *, by_proxy: bool) -> float:
    """Round trips a second."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        if by_proxy:
            ends = await (await enter(bench.alone())).ask("proxy")
        else:
            broker = (await enter(bench.broker_alone())).settings.broker
            ends = {"front": broker.clients, "back": broker.nodes}
        await (await enter(bench.alone())).ask("echo", endpoint=ends["back"])
        await asyncio.sleep(0.5)
        near = await enter(bench.alone())
        found = await near.ask("frames_per_s", endpoint=ends["front"], seconds=_SECONDS)
        return float(found["per_s"])


RELAYING: Final = Comparison(
    "relaying",
    (
        Ratio(
            "relay_vs_proxy",
            "8 KiB frames a second through the broker and back, over `zmq.proxy` in its place",
            0.75,
        ),
    ),
    _repeat,
)
