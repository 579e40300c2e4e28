"""Two brokers: when one is gone, clients and nodes go on by the other."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedsea_mq.cli.processes import Child
from fedsea_mq.settings import Settings
from fedsea_mq.transport.status import StatusWatch
from nodes import ClientNode, TrunkNode
from tests.chaos.test_faults import FAST, Pause, generate

FREE = {"clients": "tcp://127.0.0.1:*", "nodes": "tcp://127.0.0.1:*"}


@dataclass
class Pair:
    """Two broker processes, and the settings of whoever knows both."""

    first: Child
    standby: Child
    settings: Settings

    async def sessions(self, of: Child) -> int:
        settings = self.settings.replace(broker={"clients": of.ready["clients"]})
        async with StatusWatch(settings.broker) as watch:
            return (await watch.report()).sessions


@asynccontextmanager
async def pair(model: Path, folder: Path, *overrides: str) -> AsyncIterator[Pair]:
    settings = Settings.load(None, [*FAST, f"model.path={model}", *overrides])
    started: list[Child] = []
    try:
        for name in ("first", "standby"):
            own = settings.replace(broker=FREE)
            started.append(await Child.start("broker", name, own, folder))
            await started[-1].wait_ready()
        first, standby = started
        known = {name: first.ready[name] for name in FREE}
        other = {name: standby.ready[name] for name in FREE}
        yield Pair(first, standby, settings.replace(broker={**known, "standby": other}))
    finally:
        for child in started:
            if child.running:
                child.process.send_signal(signal.SIGCONT)
            await child.stop()


async def both_know(brokers: Pair) -> None:
    """Wait until the node has registered with both."""
    for broker in (brokers.first, brokers.standby):
        settings = brokers.settings.replace(broker={"clients": broker.ready["clients"]})
        async with StatusWatch(settings.broker) as watch, asyncio.timeout(10):
            while not (await watch.report()).nodes:
                await asyncio.sleep(0.05)


async def disturbed(
    brokers: Pair, client: ClientNode, how: signal.Signals
) -> tuple[list[int], list[int]]:
    """The tokens of a generation, and of the same when the first broker fails in the middle."""
    await both_know(brokers)
    undisturbed, _ = await generate(client)
    pause = Pause(at=20)
    running = asyncio.create_task(generate(client, pause))
    await pause.reached.wait()
    brokers.first.process.send_signal(how)
    pause.over.set()
    async with asyncio.timeout(20):
        tokens, _ = await running
    return undisturbed, tokens


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
async def test_a_generation_goes_on_by_the_other_broker(
    tiny_llama: Path, tmp_path: Path, how: signal.Signals
) -> None:
    async with (
        pair(tiny_llama, tmp_path) as brokers,
        TrunkNode(brokers.settings) as trunk,
        ClientNode(brokers.settings) as client,
    ):
        undisturbed, tokens = await disturbed(brokers, client, how)
        assert tokens == undisturbed
        again, recoveries = await generate(client)  # by the other from the beginning
        assert (again, recoveries) == (undisturbed, 0)
        async with asyncio.timeout(5):
            while trunk.sessions:
                await asyncio.sleep(0.05)


async def test_a_broker_that_comes_back_has_nothing_left_of_what_went_on_without_it(
    tiny_llama: Path, tmp_path: Path
) -> None:
    async with (
        pair(tiny_llama, tmp_path) as brokers,
        TrunkNode(brokers.settings) as trunk,
        ClientNode(brokers.settings) as client,
    ):
        undisturbed, tokens = await disturbed(brokers, client, signal.SIGSTOP)
        brokers.first.process.send_signal(signal.SIGCONT)
        assert tokens == undisturbed
        async with asyncio.timeout(10):
            while any([await brokers.sessions(b) for b in (brokers.first, brokers.standby)]):
                await asyncio.sleep(0.1)
        assert trunk.sessions == 0


async def test_who_starts_while_the_first_is_away_finds_the_other(
    tiny_llama: Path, tmp_path: Path
) -> None:
    async with pair(tiny_llama, tmp_path) as brokers:
        brokers.first.process.kill()
        async with TrunkNode(brokers.settings) as trunk, ClientNode(brokers.settings) as client:
            async with asyncio.timeout(10):
                await trunk.registered()
            async with asyncio.timeout(20):
                tokens, _ = await generate(client)
        assert len(tokens) == 60
