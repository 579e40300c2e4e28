"""States past the broker, over real sockets: the tokens are the same, whatever the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from broker import Broker
from fedsea_mq.load.plan import Link
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.protocol.messages import StatusReport
from fedsea_mq.settings import Settings
from fedsea_mq.transport.status import StatusWatch
from nodes import ClientNode, Completion, TrunkNode
from nodes.load.slow_peer_link import link_over
from tests.integration.forwarding import Forwarder, forwarding
from tests.integration.systems import EXACT, running, until
from tests.integration.test_generation import GREEDY, PROMPTS, oracle

DOOR = "trunk.direct=tcp://127.0.0.1:*"
DIRECT = [DOOR, "client.direct=true"]
LONG = SamplingSettings(max_new_tokens=60, ignore_eos=True)


async def status(settings: Settings) -> StatusReport:
    async with StatusWatch(settings.broker) as watch:
        return await watch.report()


def unsplit(model: Path, prompt: list[int], new: int) -> list[int]:
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    return oracle(whole, prompt, new)


async def test_past_the_broker_the_tokens_are_those_of_the_unsplit_model(tiny_llama: Path) -> None:
    wanted = [unsplit(tiny_llama, prompt, GREEDY.max_new_tokens) for prompt in PROMPTS]
    async with running(tiny_llama, *DIRECT, "trunk.max_frame_positions=16") as system:
        answers = await asyncio.gather(
            *(system.client.generate(prompt, GREEDY).complete() for prompt in PROMPTS)
        )
        await until(lambda: system.trunks[0].sessions == 0)
        report = await status(system.settings)
    assert [answer.tokens for answer in answers] == wanted
    assert all(answer.stats.direct_share == 1 for answer in answers)
    # Of each session the broker saw that it was opened, accepted and closed.
    assert report.frames_relayed == 3 * len(PROMPTS)


async def test_the_status_says_how_many_sessions_pass_the_broker_by(tiny_llama: Path) -> None:
    async with running(tiny_llama, *DIRECT) as system, system.client.session(8) as session:
        await session.advance([1, 2, 3], lambda _: None)
        async with system.client.session(8), asyncio.timeout(10):
            while True:
                (node,) = (await status(system.settings)).nodes
                if (node.load.sessions, node.load.direct_sessions) == (2, 1):
                    break


@dataclass(frozen=True, slots=True)
class Detour:
    """A system whose node offers a door that is a forwarder to its own."""

    settings: Settings
    door: Forwarder
    trunk: TrunkNode
    client: ClientNode


@asynccontextmanager
async def detour(model: Path, *overrides: str) -> AsyncIterator[Detour]:
    said = [*EXACT, f"model.path={model}", DOOR, "client.request_timeout_s=0.3", *overrides]
    settings = Settings.load(None, said)
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(settings.broker))
        to_broker = await stack.enter_async_context(forwarding(broker.nodes))
        door = await stack.enter_async_context(forwarding())
        settings = settings.replace(broker={"clients": broker.clients, "nodes": to_broker.endpoint})
        trunk = await stack.enter_async_context(TrunkNode(settings))
        await trunk.registered()
        assert trunk.direct is not None
        door.target = trunk.direct
        to_broker.rewrites = {trunk.direct.encode(): door.endpoint.encode()}
        client = await stack.enter_async_context(ClientNode(settings))
        yield Detour(settings, door, trunk, client)


async def complete(system: Detour) -> Completion:
    return await system.client.generate(PROMPTS[1], LONG).complete()


async def test_many_sessions_share_one_connection_which_stays_for_the_next(
    tiny_llama: Path,
) -> None:
    async with detour(tiny_llama, "client.direct=true") as system:
        first = await asyncio.gather(*(complete(system) for _ in range(8)))
        later = await complete(system)
        assert system.door.connections == 1
    assert all(answer.tokens == later.tokens for answer in first)
    assert later.stats.direct_share == 1


async def test_a_client_that_may_not_connects_to_nothing_but_the_broker(tiny_llama: Path) -> None:
    async with detour(tiny_llama) as system:
        answer = await complete(system)
        assert system.door.connections == 0
    assert answer.tokens == unsplit(tiny_llama, PROMPTS[1], LONG.max_new_tokens)
    assert answer.stats.traffic.direct_trips == 0
    assert answer.stats.traffic.round_trips == LONG.max_new_tokens


@pytest.mark.parametrize("how", ["nobody listens", "nobody answers", "a stranger answers"])
async def test_a_door_that_cannot_be_reached_costs_no_token(tiny_llama: Path, how: str) -> None:
    async with AsyncExitStack() as stack:
        system = await stack.enter_async_context(detour(tiny_llama, "client.direct=true"))
        match how:
            case "nobody listens":
                system.door.cut()
            case "nobody answers":
                system.door.swallows = True
            case _:
                other = await stack.enter_async_context(running(tiny_llama, DOOR))
                system.door.target = str(other.trunks[0].direct)
        answers = [await complete(system), await complete(system)]
    for answer in answers:
        assert answer.tokens == unsplit(tiny_llama, PROMPTS[1], LONG.max_new_tokens)
        assert answer.stats.traffic.direct_trips == 0


@pytest.mark.parametrize("how", ["cut", "silent"])
async def test_a_door_that_goes_in_mid_generation_costs_no_token(
    tiny_llama: Path, how: str
) -> None:
    async with detour(tiny_llama, "client.direct=true") as system:
        generation = system.client.generate(PROMPTS[1], LONG)
        tokens = []
        async for token in generation:
            tokens.append(token.id)
            if len(tokens) == 20:
                assert generation.stats.traffic.direct_trips == 20
                if how == "cut":
                    system.door.cut()
                else:
                    system.door.swallows = True
    assert tokens == unsplit(tiny_llama, PROMPTS[1], LONG.max_new_tokens)
    assert generation.stats.traffic.direct_trips == 20
    assert generation.stats.recoveries == 0


async def test_a_door_that_answers_again_is_used_again(tiny_llama: Path) -> None:
    async with (
        detour(tiny_llama, "client.direct=true", "trunk.lease_s=1") as system,
        system.client.session(400) as session,
    ):
        tokens = [await session.advance(PROMPTS[1], _likeliest)]

        async def go_on(until_direct: int) -> None:
            while session.traffic.direct_trips < until_direct:
                tokens.append(await session.advance(tokens[-1:], _likeliest))

        await go_on(10)
        system.door.swallows = True
        tokens.append(await session.advance(tokens[-1:], _likeliest))
        assert session.traffic.direct_trips == 10
        # A stream that lacks a piece cannot be mended; the next connection is whole.
        system.door.swallows = False
        system.door.break_connections()
        await go_on(20)
        assert session.traffic.round_trips > 21
    assert tokens == unsplit(tiny_llama, PROMPTS[1], len(tokens))


def _likeliest(logits: torch.Tensor) -> int:
    return int(logits[-1].argmax())


async def test_over_an_emulated_network_the_way_past_the_broker_is_as_long(
    tiny_llama: Path,
) -> None:
    link = link_over(Link(delay_ms=20), seed=0)
    async with (
        running(tiny_llama, *DIRECT) as system,
        ClientNode(system.settings, link) as client,
    ):
        answer = await client.generate([1, 2, 3], GREEDY).complete()
    assert answer.stats.direct_share == 1
    assert answer.stats.tpot_ms >= 40


async def test_a_client_that_vanishes_leaves_no_kv_behind_though_the_broker_sees_no_states(
    tiny_llama: Path,
) -> None:
    async with running(tiny_llama, *DIRECT) as system:
        async with ClientNode(system.settings) as client:
            session = await client.session(8).__aenter__()
            await session.advance([1, 2, 3], lambda _: None)
            assert session.traffic.direct_trips == 1
        assert system.trunks[0].sessions == 1  # nobody closed it, and its lease is long
        await until(lambda: system.trunks[0].sessions == 0)
