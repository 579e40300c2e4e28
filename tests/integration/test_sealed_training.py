"""A training run whose members, trunk and aggregator seal to each other: it learns the same."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import torch

from fedsea_mq.model.adapters import AdapterFolder
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.settings import Settings
from nodes import AggregatorNode, TrunkNode
from nodes.trainer import TrainingClient
from nodes.trainer.events import Event, StepDone
from tests.integration.systems import EXACT
from tests.integration.train_command import RUN, short_run
from tests.sealing import Flips, MeddlingBroker, Tap, sealed

# The next step's batches follow a step at once, and are out of turn where it was lost: that costs
# an attempt, sealed or not.
SPARED = frozenset({Kind.STEP})
# Both have the key that is called `node`.
MEMBERS = ("node.1", "node.2")


Losses = dict[tuple[str, int, int], float]


async def run(settings: Settings, meddle: Tap | Flips) -> Losses:
    """Broker, trunk, aggregator and members, to the run's end: the loss of each member's steps."""
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(MeddlingBroker(settings))
        settings = settings.replace(broker={"clients": broker.clients, "nodes": broker.nodes})
        for node in (TrunkNode(settings), AggregatorNode(settings)):
            await stack.enter_async_context(node)
            await node.registered()
        broker.meddle = meddle
        events = await asyncio.gather(*(member(settings, number) for number in range(2)))
    return {
        (name, event.round, event.step): event.loss
        for name, said in zip(MEMBERS, events, strict=True)
        for event in said
        if isinstance(event, StepDone)
    }


async def member(settings: Settings, shard: int) -> list[Event]:
    settings = settings.replace(training={"shard": shard})
    async with TrainingClient(settings, MEMBERS[shard]) as trainer:
        return [event async for event in trainer.run()]


def adapters(out: Path) -> dict[str, torch.Tensor]:
    folders = [out / RUN / "trunk" / "adapter", out / RUN / "members" / MEMBERS[0] / "head"]
    return {name: t for folder in folders for name, t in AdapterFolder.open(folder).read().items()}


async def test_a_sealed_run_learns_what_one_in_clear_learns_though_the_broker_meddles(
    tmp_path: Path,
) -> None:
    said = [*EXACT, *short_run(tmp_path), "federation.secure=true"]
    plain = await run(Settings.load(None, [*said, f"training.out={tmp_path / 'plain'}"]), Tap())
    seals = [*sealed(tmp_path), f"training.out={tmp_path / 'sealed'}"]
    flips, quick = Flips(random.Random(1), SPARED), "client.request_timeout_s=0.1"
    secret = await run(Settings.load(None, [*said, *seals, quick]), flips)
    assert len(plain) == 8
    assert secret == pytest.approx(plain, rel=1e-5)
    wanted = adapters(tmp_path / "plain")
    for name, tensor in adapters(tmp_path / "sealed").items():
        torch.testing.assert_close(tensor, wanted[name], atol=1e-6, rtol=1e-4)
    assert flips.changed > 10
