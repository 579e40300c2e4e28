"""A training run whose parties all have keys of their own: the same numbers as without."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import torch

from broker import Broker
from fedsea_mq.errors import NotTrusted
from fedsea_mq.model.adapters import AdapterFolder
from fedsea_mq.security.identity import Party
from fedsea_mq.settings import Settings
from nodes import AggregatorNode, TrainingClient, TrunkNode
from nodes.trainer import Examples
from tests.integration.keys import Keys
from tests.integration.systems import EXACT
from tests.unit.training.unsplit import samples

DATA = Examples(samples(9, seed=5))
RUN = [
    "training.run=silos",
    "training.clients=1",
    "training.batch_size=2",
    "training.learning_rate=0.01",
    "federation.rounds=2",
    "federation.local_steps=2",
]
Own = Callable[[Settings, str], Settings]


async def train(
    settings: Settings, own: Own, key: str = "clinic", member: str = "clinic"
) -> dict[str, torch.Tensor]:
    """A run with one member; what it wrote."""
    async with AsyncExitStack() as stack:
        of_broker = own(settings, "broker")
        broker = await stack.enter_async_context(Broker(of_broker.broker, of_broker.security))
        settings = settings.replace(broker={"clients": broker.clients, "nodes": broker.nodes})
        trunk = await stack.enter_async_context(TrunkNode(own(settings, "rack")))
        await trunk.registered()
        node = await stack.enter_async_context(AggregatorNode(own(settings, "summer")))
        await node.registered()
        trainer = await stack.enter_async_context(TrainingClient(own(settings, key), member, DATA))
        async for _ in trainer.run():
            pass
        assert await node.ended()
    folder = settings.training.out / "silos"
    parts = [folder / "trunk" / "adapter", folder / "head", folder / "tail"]
    return {name: t for part in parts for name, t in AdapterFolder.open(part).read().items()}


async def test_a_run_with_keys_is_the_run_without_and_a_clients_key_has_no_part_in_it(
    tiny_llama: Path, tmp_path: Path
) -> None:
    keys = Keys.of(
        tmp_path / "keys",
        rack=Party.TRUNK,
        summer=Party.AGGREGATOR,
        clinic=Party.TRAINER,
        anna=Party.CLIENT,
    )

    def settings(out: str) -> Settings:
        said = [*EXACT, *RUN, f"model.path={tiny_llama}", f"training.out={tmp_path / out}"]
        return Settings.load(None, said)

    plain = await train(settings("plain"), lambda settings, _: settings)
    keyed = await train(settings("keyed"), keys.settings)
    assert plain.keys() == keyed.keys()
    assert all(torch.equal(plain[name], keyed[name]) for name in plain)
    with pytest.raises(NotTrusted, match="trainer"):
        await train(settings("refused"), keys.settings, "anna")
    with pytest.raises(NotTrusted, match="clinic, and not north"):
        await train(settings("another"), keys.settings, member="north")
