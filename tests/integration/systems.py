"""A whole system in one event loop, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from broker import Broker
from fedsea_mq.settings import Settings
from nodes import ClientNode, TrunkNode

EXACT = [
    "noise.mode=off",
    "client.wire_dtype=fp32",
    "broker.clients=tcp://127.0.0.1:*",
    "broker.nodes=tcp://127.0.0.1:*",
    "broker.heartbeat_ms=100",
    "broker.timeout_ms=1000",
    "client.request_timeout_s=1",
    "client.give_up_s=20",
]


@dataclass(frozen=True, slots=True)
class System:
    """What a test drives."""

    settings: Settings
    broker: Broker
    trunks: list[TrunkNode]
    client: ClientNode


@asynccontextmanager
async def running(model: Path | str, *overrides: str, trunks: int = 1) -> AsyncIterator[System]:
    """Broker, trunk nodes and a client on free ports; noise off and fp32 unless overridden."""
    settings = Settings.load(None, [*EXACT, f"model.path={model}", *overrides])
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(
            Broker(settings.broker, settings.security, telemetry=settings.telemetry)
        )
        settings = settings.replace(broker={"clients": broker.clients, "nodes": broker.nodes})
        nodes = [await stack.enter_async_context(TrunkNode(settings)) for _ in range(trunks)]
        for node in nodes:
            await node.registered()
        client = await stack.enter_async_context(ClientNode(settings))
        yield System(settings, broker, nodes, client)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for a condition; the test fails if it does not come about."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
