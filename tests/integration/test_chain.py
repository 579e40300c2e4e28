"""A trunk as a chain of stages, against the unsplit model, over real sockets, noise off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from broker import Broker
from fedsea_mq.errors import (
    ConfigError,
    IllegalCut,
    LimitExceeded,
    NotTrusted,
    SessionNotYours,
)
from fedsea_mq.model.lora import LoraSettings
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.messages import Open
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.protocol.stage import Onward
from fedsea_mq.security.identity import Party
from fedsea_mq.serving.drafting import DraftLength
from fedsea_mq.settings import Settings
from nodes import ClientNode, TrunkNode
from nodes.session_wires import session_wires
from tests.adapters import make_adapter, with_adapter
from tests.conftest import MakeModel
from tests.integration.keys import Keys
from tests.integration.systems import EXACT, running, until
from tests.integration.test_direct import DIRECT, status
from tests.integration.test_generation import DRAFTS, GREEDY, PROMPTS, oracle
from tests.integration.test_sessions import as_they_are, assert_equal
from tests.integration.test_sessions import oracle as logits_of

HALVES = ("1/2", "2/2")
TOKENS = [(7 * n) % 290 for n in range(90)]


@dataclass(frozen=True, slots=True)
class Chain:
    """A system whose trunk is divided; `nodes` in the order in which they joined."""

    settings: Settings
    broker: Broker
    client: ClientNode
    nodes: list[TrunkNode] = field(default_factory=list)
    _stacks: list[AsyncExitStack] = field(default_factory=list)

    @property
    def sessions(self) -> int:
        return sum(node.sessions for node in self.nodes)

    async def join(self, blocks: str, **trunk: Any) -> TrunkNode:
        """One more node, with these blocks."""
        stack = AsyncExitStack()
        own = self.settings.replace(trunk={"blocks": blocks, **trunk})
        node = await stack.enter_async_context(TrunkNode(own))
        self.nodes.append(node)
        self._stacks.append(stack)
        await node.registered()
        return node

    async def leave(self, node: TrunkNode) -> None:
        """A node goes without a word to the clients of its sessions."""
        number = self.nodes.index(node)
        del self.nodes[number]
        await self._stacks.pop(number).aclose()

    async def __aenter__(self) -> Chain:
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in list(self.nodes):
            await self.leave(node)


@asynccontextmanager
async def chained(
    model: Path, blocks: Sequence[str] = HALVES, *overrides: str
) -> AsyncIterator[Chain]:
    """Broker, a node for each run of blocks, and a client on free ports."""
    settings = Settings.load(None, [*EXACT, f"model.path={model}", *overrides])
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(settings.broker, settings.security))
        settings = settings.replace(broker={"clients": broker.clients, "nodes": broker.nodes})
        client = await stack.enter_async_context(ClientNode(settings))
        chain = await stack.enter_async_context(Chain(settings, broker, client))
        for own in blocks:
            await chain.join(own)
        yield chain


@pytest.fixture(scope="module")
def deep(make_model: MakeModel) -> Path:
    """A LLaMA of 6 blocks: 4 in the trunk."""
    return make_model("llama", num_hidden_layers=6)


@pytest.fixture(scope="module")
def wanted(deep: Path) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(deep, dtype=torch.float32).eval()
    return [oracle(model, prompt) for prompt in PROMPTS]


async def tokens_of(chain: Chain, **how: Any) -> list[list[int]]:
    """What all prompts are answered with, asked at once; nothing of them stays."""
    asked = [chain.client.generate(prompt, GREEDY, **how).complete() for prompt in PROMPTS]
    answers = await asyncio.gather(*asked)
    await until(lambda: chain.sessions == 0)
    return [answer.tokens for answer in answers]


@pytest.mark.parametrize(
    "blocks", [HALVES, ("1-1", "2-3", "4-4"), ("2/2", "1-2", "1-4")], ids=["two", "three", "mixed"]
)
async def test_a_chain_gives_the_unsplit_tokens(
    deep: Path, wanted: list[list[int]], blocks: Sequence[str]
) -> None:
    # Frames so small that prompts are sent in several.
    async with chained(deep, blocks, "trunk.max_frame_positions=16") as chain:
        assert await tokens_of(chain) == wanted


async def test_drafts_go_through_all_stages_and_back_where_they_are_wrong(
    deep: Path, wanted: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DraftLength, "best", lambda length: length.most)
    async with chained(deep, HALVES, *DRAFTS) as chain:
        generation = chain.client.generate(PROMPTS[2], GREEDY)
        await generation.complete()
        assert generation.stats.drafted > generation.stats.accepted
        assert await tokens_of(chain) == wanted


async def test_past_the_broker_stages_speak_to_each_other(
    deep: Path, wanted: list[list[int]]
) -> None:
    async with chained(deep, HALVES, *DIRECT) as chain:
        assert await tokens_of(chain) == wanted
        # Of each session, and of the one that it goes on in: opened, accepted, closed.
        assert (await status(chain.settings)).frames_relayed == 6 * len(PROMPTS)


async def test_adapters_are_run_by_the_stages_whose_blocks_they_are_for(
    deep: Path, tmp_path: Path
) -> None:
    lora = LoraSettings(rank=4, alpha=8.0, targets=("q_proj", "down_proj"))
    blocks = {"all": range(6), "early": [1], "late": [4], "ends": [2, 3]}
    folders = {
        name: make_adapter(deep, tmp_path / name, lora, seed=seed, blocks=own)
        for seed, (name, own) in enumerate(blocks.items())
    }
    held = ", ".join(f"{name}: {folder}" for name, folder in folders.items())
    said = [f"{party}.adapters={{{held}}}" for party in ("trunk", "client")]
    async with chained(deep, ("1-1", "2-3", "4-4"), *said) as chain:
        found = {name: tokens_of(chain, adapter=name) for name in (*folders, None)}
        answers = dict(zip(found, await asyncio.gather(*found.values()), strict=True))
    for name, came in answers.items():
        model = with_adapter(deep, None if name is None else folders[name])
        assert came == [_peft_tokens(model, prompt) for prompt in PROMPTS], name
        assert name is None or came != answers[None], name


def _peft_tokens(model: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=GREEDY.max_new_tokens,
        do_sample=False,
        eos_token_id=None,
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


async def test_a_session_rolls_back_on_every_stage(deep: Path) -> None:
    async with chained(deep) as chain, chain.client.session(100) as session:
        await session.advance(TOKENS, as_they_are)
        session.roll_back(40)
        came = await session.advance([5, 6, 7], as_they_are, rows=3)
    assert_equal(came, logits_of(deep, [*TOKENS[:40], 5, 6, 7], rows=3))


@pytest.mark.parametrize("stage", [0, 1])
async def test_a_stage_that_is_lost_is_replaced_from_what_was_sent(deep: Path, stage: int) -> None:
    frames = "trunk.max_frame_positions=32"
    async with chained(deep, HALVES, frames) as chain, chain.client.session(100) as session:
        await session.advance(TOKENS[:80], as_they_are)
        await chain.join(HALVES[stage])
        await chain.leave(chain.nodes[stage])
        came = await session.advance(TOKENS[80:], as_they_are)
        # The loss of a later stage is the business of the one before it.
        assert session.recoveries == (1 if stage == 0 else 0)
        await until(lambda: chain.sessions == 2)
    assert_equal(came, logits_of(deep, TOKENS))


async def test_a_chain_outlives_a_restart_of_the_broker(deep: Path) -> None:
    async with chained(deep) as chain, chain.client.session(100) as session:
        await session.advance(TOKENS[:80], as_they_are)
        await chain.broker.__aexit__()
        async with Broker(chain.settings.broker):
            came = await session.advance(TOKENS[80:], as_they_are)
            assert (session.recoveries, chain.sessions) == (0, 2)
        await chain.broker.__aenter__()
    assert_equal(came, logits_of(deep, TOKENS))


async def test_who_leaves_in_the_middle_leaves_nothing_on_any_stage(deep: Path) -> None:
    async with chained(deep, ("1-1", "2-3", "4-4")) as chain:
        async with aclosing(aiter(chain.client.generate(PROMPTS[1], GREEDY))) as tokens:
            await anext(tokens)
            await until(lambda: chain.sessions == 3)
        leaving = asyncio.create_task(chain.client.generate(PROMPTS[3], GREEDY).complete())
        await until(lambda: chain.sessions > 0)
        leaving.cancel()
        await until(lambda: chain.sessions == 0)
        assert [len(node._caches) for node in chain.nodes] == [0, 0, 0]


async def test_nobody_is_let_in_before_all_blocks_are_there(
    deep: Path, wanted: list[list[int]]
) -> None:
    async with chained(deep, ["1/2"]) as chain:
        waiting = asyncio.create_task(chain.client.generate(PROMPTS[0], GREEDY).complete())
        await until(lambda: chain.client._wires is not None)
        assert (await status(chain.settings)).sessions == 0
        await chain.join("2/2")
        assert (await waiting).tokens == wanted[0]


async def test_a_session_too_long_for_a_later_stage_is_refused_by_name(deep: Path) -> None:
    async with chained(deep, ["1/2"]) as chain:
        # Keys and values of two blocks, of 2 heads of 16 in fp32, for one session.
        small = await chain.join("2/2", kv_memory_mb=1)
        most = small.kv_positions_free
        wide = chain.nodes[0].kv_positions_free
        assert most < wide
        with pytest.raises(LimitExceeded, match=f"this node holds 1 to {min(most, 512)}"):
            async with chain.client.session(513) as session:
                await session.advance([1], as_they_are)


async def test_limits_count_a_session_once(deep: Path, wanted: list[list[int]]) -> None:
    few = ["broker.client_sessions=1", "broker.client_frames_per_s=40"]
    async with chained(deep, HALVES, *few) as chain:
        answer = await chain.client.generate(PROMPTS[0], GREEDY).complete()
    assert answer.tokens == wanted[0]
    assert answer.stats.traffic.refusals == 0


async def test_int8_weights_and_caches_are_each_stages_own(deep: Path) -> None:
    narrow = ["model.weights=int8", "model.kv_cache=int8"]
    async with running(deep, *narrow) as whole:
        asked = [whole.client.generate(prompt, GREEDY).complete() for prompt in PROMPTS]
        expected = [answer.tokens for answer in await asyncio.gather(*asked)]
    async with chained(deep, HALVES, *narrow) as chain:
        assert await tokens_of(chain) == expected


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys.of(
        tmp_path / "keys", front=Party.TRUNK, back=Party.TRUNK, other=Party.TRUNK, anna=Party.CLIENT
    )


@asynccontextmanager
async def keyed_chain(model: Path, keys: Keys, *overrides: str) -> AsyncIterator[Settings]:
    """A broker and two stages, each with a key of its own; what the broker does not see is sealed.

    The settings are those of somebody without a key.
    """
    plain = Settings.load(None, [*EXACT, f"model.path={model}", *overrides])
    async with AsyncExitStack() as stack:
        own = keys.settings(plain, "broker")
        broker = await stack.enter_async_context(Broker(own.broker, own.security))
        plain = plain.replace(broker={"clients": broker.clients, "nodes": broker.nodes})
        for name, blocks in zip(("front", "back"), HALVES, strict=True):
            said = party(keys, plain, name).replace(trunk={"blocks": blocks})
            await (await stack.enter_async_context(TrunkNode(said))).registered()
        yield plain


def party(keys: Keys, plain: Settings, name: str) -> Settings:
    return keys.settings(plain, name).replace(security={"seal": "on"})


@pytest.mark.parametrize("way", [[], DIRECT], ids=["relayed", "direct"])
async def test_stages_with_keys_seal_to_each_other(
    deep: Path, wanted: list[list[int]], keys: Keys, way: list[str]
) -> None:
    async with (
        keyed_chain(deep, keys, *way) as plain,
        ClientNode(party(keys, plain, "anna")) as anna,
    ):
        assert (await anna.generate(PROMPTS[1], GREEDY).complete()).tokens == wanted[1]


async def test_a_node_opens_no_session_but_to_go_on_with_one_of_its_own(
    deep: Path, keys: Keys
) -> None:
    async with (
        keyed_chain(deep, keys) as plain,
        ClientNode(party(keys, plain, "anna")) as anna,
        anna.session(8) as session,
    ):
        await session.advance([1, 2], as_they_are)
        mine = Open(anna.model.fingerprint, 8, WireDtype.FP32)
        onward = replace(mine, onward=Onward(3, session._trunk.id))
        for name, asked, error in (
            ("other", mine, NotTrusted),
            ("other", onward, SessionNotYours),
            ("front", mine, NotTrusted),
            ("anna", onward, NotTrusted),
        ):
            async with session_wires(party(keys, plain, name)) as wires:
                with pytest.raises(error):
                    await wires.requests.ask(Kind.OPEN, asked, session=b"n" * 16)
        await session.advance([3], as_they_are)


@pytest.mark.parametrize("blocks", ["0-1", "2-1", "4-5", "3/2", "0/2", "1/5"])
async def test_blocks_that_are_not_the_trunks_stop_a_node_at_its_start(
    deep: Path, blocks: str
) -> None:
    settings = Settings.load(None, [*EXACT, f"model.path={deep}", f"trunk.blocks={blocks}"])
    with pytest.raises(IllegalCut, match=f"trunk.blocks {blocks}"):
        async with TrunkNode(settings):
            pass


async def test_a_stage_does_not_train(deep: Path) -> None:
    said = [*EXACT, f"model.path={deep}", "trunk.blocks=1/2", "training.run=silos"]
    with pytest.raises(ConfigError, match="has the whole trunk"):
        async with TrunkNode(Settings.load(None, said)):
            pass


async def test_a_session_that_speaks_by_another_broker_than_its_stages_goes_on(
    deep: Path, wanted: list[list[int]]
) -> None:
    settings = Settings.load(None, [*EXACT, f"model.path={deep}"])
    async with AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(Broker(settings.broker, settings.security))
            for _ in range(2)
        ]
        ports = [{"clients": each.clients, "nodes": each.nodes} for each in (one, other)]
        stages = settings.replace(broker={**ports[0], "standby": ports[1]})
        for blocks in HALVES:
            node = TrunkNode(stages.replace(trunk={"blocks": blocks}))
            await stack.enter_async_context(node)
        await until(lambda: all(len(each._running._state.registry) == 2 for each in (one, other)))
        swapped = settings.replace(broker={**ports[1], "standby": ports[0]})
        client = await stack.enter_async_context(ClientNode(swapped))
        for prompt, tokens in zip(PROMPTS, wanted, strict=True):
            answer = await client.generate(prompt, GREEDY).complete()
            assert answer.tokens == tokens
