"""Sealed sessions over real sockets: the tokens are those of the unsplit model, whatever is done.

The broker reads nothing of what it relays, and when it changes it the sessions go on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from broker.messages import Side
from fedsea_mq.cli.processes import LocalSystem
from fedsea_mq.errors import (
    ConfigError,
    KeyUntrusted,
    RemoteError,
    SealBroken,
    SealRequired,
)
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.protocol.messages import Extend, Nothing
from fedsea_mq.security.identity import Party
from fedsea_mq.security.keyring import Keyring
from fedsea_mq.security.keys import read_public
from fedsea_mq.security.sealing import is_sealed
from fedsea_mq.settings import Settings
from fedsea_mq.transport.link import PeerLink
from nodes import ClientNode, TrunkNode
from tests.integration.systems import EXACT, System, running, until
from tests.integration.test_direct import DIRECT, LONG, unsplit
from tests.integration.test_generation import GREEDY, PROMPTS
from tests.sealing import Flips, MeddlingBroker, Mixes, Tap, kind_of, node_key, pin, sealed, sign

_NEW = GREEDY.max_new_tokens


@asynccontextmanager
async def meddled(model: Path, *overrides: str) -> AsyncIterator[tuple[System, MeddlingBroker]]:
    said = [*EXACT, f"model.path={model}", "client.request_timeout_s=0.03", *overrides]
    settings = Settings.load(None, said)
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(MeddlingBroker(settings))
        settings = settings.replace(broker={"clients": broker.clients, "nodes": broker.nodes})
        trunk = await stack.enter_async_context(TrunkNode(settings))
        await trunk.registered()
        client = await stack.enter_async_context(ClientNode(settings))
        yield System(settings, broker, [trunk], client), broker


@pytest.mark.parametrize("way", [[], DIRECT], ids=["relayed", "direct"])
async def test_sealed_sessions_give_the_tokens_of_the_unsplit_model(
    tiny_llama: Path, tmp_path: Path, way: list[str]
) -> None:
    wanted = [unsplit(tiny_llama, prompt, _NEW) for prompt in PROMPTS]
    frames = "trunk.max_frame_positions=16"
    async with running(tiny_llama, *sealed(tmp_path), *way, frames) as system:
        answers = await asyncio.gather(
            *(system.client.generate(prompt, GREEDY).complete() for prompt in PROMPTS)
        )
        await until(lambda: system.trunks[0].sessions == 0)
    assert [answer.tokens for answer in answers] == wanted
    assert all(answer.stats.direct_share == bool(way) for answer in answers)


async def test_over_processes_the_tokens_are_those_of_the_unsplit_model(
    tiny_llama: Path, tmp_path: Path
) -> None:
    said = [*EXACT, f"model.path={tiny_llama}", "log.level=warning", *sealed(tmp_path)]
    async with LocalSystem(Settings.load(None, said), trunks=1) as system:
        client = await system.start_client("client")
        await client.wait_ready()
        sampling = {"max_new_tokens": _NEW, "ignore_eos": True}
        client.ask({"id": "a", "tokens": PROMPTS[2], "sampling": sampling})
        answer = await client.line()
        while "done" not in answer:
            assert "error" not in answer, answer
            answer = await client.line()
    assert answer["done"]["tokens"] == unsplit(tiny_llama, PROMPTS[2], _NEW)


async def test_the_broker_reads_what_it_places_by_and_nothing_else(
    tiny_llama: Path, tmp_path: Path
) -> None:
    taps = []
    for security in ([], sealed(tmp_path)):
        async with meddled(tiny_llama, *security) as (system, broker):
            tap = broker.meddle = Tap()
            await system.client.generate(PROMPTS[1], GREEDY).complete()
        taps.append(tap.relayed)
        states = [part for parts in taps[0] if kind_of(parts) is Kind.EXTEND for part in parts[2:]]
    plain, secret = (b"".join(b"".join(parts) for parts in relayed) for relayed in taps)
    assert len(states) == _NEW
    for known in (*states, b"rewinds", b"cached", b"lease_ms", b"returned"):
        assert known in plain
        assert known[:16] not in secret
    assert all(word in secret for word in (b"fingerprint", b"max_positions", b"urgency"))


async def test_a_broker_that_changes_any_byte_costs_time_and_no_token(
    tiny_llama: Path, tmp_path: Path
) -> None:
    async with meddled(tiny_llama, *sealed(tmp_path)) as (system, broker):
        flips = broker.meddle = Flips(random.Random(5))
        answers = await asyncio.gather(
            *(system.client.generate(prompt, GREEDY).complete() for prompt in PROMPTS)
        )
        broker.meddle = Tap()
    wanted = [unsplit(tiny_llama, prompt, _NEW) for prompt in PROMPTS]
    assert [answer.tokens for answer in answers] == wanted
    # How many depends on how frames were bundled; few would be a test that went quiet.
    assert flips.changed > 30


async def test_a_broker_that_swaps_and_replays_costs_time_and_no_token(
    tiny_llama: Path, tmp_path: Path
) -> None:
    async with meddled(tiny_llama, *sealed(tmp_path)) as (system, broker):
        mixes = broker.meddle = Mixes(random.Random(5))
        answers = await asyncio.gather(
            *(system.client.generate(prompt, GREEDY).complete() for prompt in PROMPTS)
        )
        broker.meddle = Tap()
    wanted = [unsplit(tiny_llama, prompt, _NEW) for prompt in PROMPTS]
    assert [answer.tokens for answer in answers] == wanted
    assert mixes.mixed > 50


async def test_a_broker_that_changes_all_is_named_in_the_end(
    tiny_llama: Path, tmp_path: Path
) -> None:
    def all_but_the_opening(_: Side, parts: Parts) -> Iterable[Parts]:
        if kind_of(parts) is not Kind.RESULT:
            return [parts]
        return [[parts[0], parts[1][:-1] + bytes([parts[1][-1] ^ 1]), *parts[2:]]]

    async with meddled(tiny_llama, *sealed(tmp_path), "client.give_up_s=3") as (system, broker):
        broker.meddle = all_but_the_opening
        with pytest.raises(SealBroken):
            await system.client.generate(PROMPTS[0], GREEDY).complete()


async def test_a_lost_node_is_replaced_and_what_was_sent_goes_out_under_new_keys(
    tiny_llama: Path, tmp_path: Path
) -> None:
    async with meddled(tiny_llama, *sealed(tmp_path)) as (system, broker):
        tap = broker.meddle = Tap()
        async with TrunkNode(system.settings) as other:
            await other.registered()
            generation = system.client.generate(PROMPTS[1], LONG)
            tokens = []
            async for token in generation:
                tokens.append(token.id)
                if len(tokens) == 20:
                    (holder,) = [node for node in (other, *system.trunks) if node.sessions]
                    await holder.__aexit__()
    assert generation.stats.recoveries == 1
    assert tokens == unsplit(tiny_llama, PROMPTS[1], LONG.max_new_tokens)
    sent = {tuple(parts) for parts in tap.relayed if kind_of(parts) is Kind.EXTEND}
    assert len({parts[0] for parts in sent}) == len(sent)  # what is sent again is the same bytes
    assert len({part for parts in sent for part in parts[1:]}) == 2 * len(sent)


async def test_a_node_with_another_key_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    async with running(tiny_llama, *sealed(tmp_path)) as system:
        others = tmp_path / "others"
        node_key(others)
        trusts_others = {"trust": str(pin(others, "node", Party.TRUNK))}
        async with ClientNode(system.settings.replace(security=trusts_others)) as client:
            with pytest.raises(KeyUntrusted):
                await client.generate(PROMPTS[0], GREEDY).complete()
        await until(lambda: system.trunks[0].sessions == 0)


async def test_a_key_that_the_operator_signed_is_as_good_as_a_pinned_one(
    tiny_llama: Path, tmp_path: Path
) -> None:
    security = sealed(tmp_path)
    operator = sign(tmp_path, read_public(tmp_path / "node.pub").raw, Role.TRUNK)
    async with running(tiny_llama, *security) as system:
        trusts_the_operator = {"trust": None, "operator_key": str(operator)}
        async with ClientNode(system.settings.replace(security=trusts_the_operator)) as client:
            answer = await client.generate(PROMPTS[0], GREEDY).complete()
    assert answer.tokens == unsplit(tiny_llama, PROMPTS[0], _NEW)


async def test_who_knows_a_session_s_id_and_reaches_its_node_does_it_no_harm(
    tiny_llama: Path, tmp_path: Path
) -> None:
    async with (
        running(tiny_llama, *sealed(tmp_path), *DIRECT) as system,
        system.client.session(8) as session,
    ):
        await session.advance([1, 2, 3], lambda _: None)
        said: list[Frame] = []
        door = system.trunks[0].direct
        assert door is not None
        keyring = Keyring.load(system.settings.security)
        assert keyring.public is not None
        keys = keyring.to_node(door, keyring.public.raw)
        async with PeerLink(door, said.append, max_part_bytes=1 << 20, keys=keys) as link:
            body = Extend(cached=3, count=1, returned=1)
            asks = {Kind.CLOSE: Nothing(), Kind.RENEW: Nothing(), Kind.EXTEND: body}
            for kind, asked in asks.items():
                link.send(Frame.build(kind, asked, session=session._trunk.id, seq=9).parts())
            await until(lambda: len(said) == 3)
        # The first is refused by the session's rules, so what they say is for its client.
        assert is_sealed(said[0].packed_body)
        assert [type(frame.refusal()) for frame in said[1:]] == [SealBroken, SealBroken]
        await session.advance([4], lambda _: None)
        assert session.recoveries == 0


@pytest.mark.parametrize(
    ("node", "error"), [("on", SealRequired), ("off", SealBroken)], ids=["node", "client"]
)
async def test_where_one_side_alone_seals_nothing_is_said(
    tiny_llama: Path, tmp_path: Path, node: str, error: type[RemoteError]
) -> None:
    security = [*sealed(tmp_path), f"security.seal={node}"]
    async with running(tiny_llama, *security, "client.give_up_s=0.5") as system:
        other = {"seal": "off" if node == "on" else "on"}
        async with ClientNode(system.settings.replace(security=other)) as client:
            with pytest.raises(error):
                await client.generate(PROMPTS[0], GREEDY).complete()


async def test_a_client_that_trusts_no_node_does_not_start(
    tiny_llama: Path, tmp_path: Path
) -> None:
    said = [*EXACT, f"model.path={tiny_llama}", *sealed(tmp_path, Party.CLIENT)]
    with pytest.raises(ConfigError, match=r"security\.trust"):
        await ClientNode(Settings.load(None, said)).__aenter__()
    with pytest.raises(ConfigError, match=r"security\.key"):
        Settings.load(None, ["security.seal=on"])
