"""A trunk as a chain of stages, against the unsplit model, over real sockets, noise off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from broker import Broker
from fedsea_mq.settings import Settings
from nodes import ClientNode, TrunkNode
from tests.conftest import MakeModel
from tests.integration.systems import EXACT, until
from tests.integration.test_generation import GREEDY, PROMPTS, oracle


@dataclass(frozen=True, slots=True)
class Chain:
    """A system whose trunk is divided; `nodes` in the order of their blocks."""

    settings: Settings
    nodes: list[TrunkNode]
    client: ClientNode

    @property
    def sessions(self) -> int:
        return sum(node.sessions for node in self.nodes)


@asynccontextmanager
async def chained(model: Path, blocks: Sequence[str], *overrides: str) -> AsyncIterator[Chain]:
    """Broker, a node for each run of blocks, and a client on free ports."""
    settings = Settings.load(None, [*EXACT, f"model.path={model}", *overrides])
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(settings.broker, settings.security))
        settings = settings.replace(broker={"clients": broker.clients, "nodes": broker.nodes})
        nodes = [TrunkNode(settings.replace(trunk={"blocks": own})) for own in blocks]
        for node in nodes:
            await (await stack.enter_async_context(node)).registered()
        client = await stack.enter_async_context(ClientNode(settings))
        yield Chain(settings, nodes, client)


@pytest.fixture(scope="module")
def deep(make_model: MakeModel) -> Path:
    """A LLaMA of 6 blocks: 4 in the trunk."""
    return make_model("llama", num_hidden_layers=6)


@pytest.fixture(scope="module")
def wanted(deep: Path) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(deep, dtype=torch.float32).eval()
    return [oracle(model, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("blocks", [("1/2", "2/2"), ("1-1", "2-3", "4-4")], ids=["two", "three"])
async def test_a_chain_gives_the_unsplit_tokens(
    deep: Path, wanted: list[list[int]], blocks: Sequence[str]
) -> None:
    async with chained(deep, blocks, "trunk.max_frame_positions=16") as chain:
        asked = [chain.client.generate(prompt, GREEDY).complete() for prompt in PROMPTS]
        answers = await asyncio.gather(*asked)
        await until(lambda: chain.sessions == 0)
    assert [answer.tokens for answer in answers] == wanted
