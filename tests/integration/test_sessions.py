"""One session whose calls are cut short or whose nodes go: the next call is right all the same."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Nothing, Open
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.serving.trunk_sessions import BROKER
from fedsea_mq.transport.link import PeerLink
from nodes import TrunkNode
from nodes.client.session import ClientSession
from tests.integration.systems import System, running, until

LENGTH, MOST = 150, 400
TOKENS = [(7 * n) % 290 for n in range(LENGTH)]


class Joining:
    """Trunk nodes that come and go while a system runs."""

    def __init__(self, system: System) -> None:
        self._settings = system.settings
        self._nodes: dict[str, tuple[TrunkNode, AsyncExitStack]] = {}

    async def __aenter__(self) -> Joining:
        return self

    async def __aexit__(self, *_: object) -> None:
        for name in list(self._nodes):
            await self.leave(name)

    async def join(self, name: str, frame_positions: int) -> TrunkNode:
        stack = AsyncExitStack()
        terms = {"name": name, "max_frame_positions": frame_positions}
        node = await stack.enter_async_context(TrunkNode(self._settings.replace(trunk=terms)))
        self._nodes[name] = node, stack
        await node.registered()
        return node

    async def leave(self, name: str) -> None:
        await self._nodes.pop(name)[1].aclose()


def oracle(model: Path, tokens: list[int], rows: int = 1) -> torch.Tensor:
    """The unsplit model's logits of the last positions `[rows, vocab]`."""
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        return whole(torch.tensor([tokens])).logits[0, -rows:]


async def sent_more(session: ClientSession) -> None:
    """Wait until the session has sent something."""
    before = session.traffic.bytes_up
    while session.traffic.bytes_up == before:
        await asyncio.sleep(0)


def as_they_are(logits: torch.Tensor) -> torch.Tensor:
    return logits


def assert_equal(came: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(came, wanted, rtol=1e-4, atol=1e-5)


async def test_a_session_goes_on_at_a_node_with_smaller_frames(tiny_llama: Path) -> None:
    async with running(tiny_llama, trunks=0) as system, Joining(system) as nodes:
        await nodes.join("wide", 64)
        async with system.client.session(MOST) as session:
            await session.advance(TOKENS[:50], as_they_are)
            await nodes.join("narrow", 16)
            await nodes.leave("wide")
            came = await session.advance(TOKENS[50:100], as_they_are, rows=20)
            assert (session.node, session.recoveries) == ("narrow", 1)
    assert_equal(came, oracle(tiny_llama, TOKENS[:100], rows=20))


async def test_a_session_is_opened_elsewhere_where_its_node_was_gone_and_nobody_knew(
    tiny_llama: Path,
) -> None:
    async with running(tiny_llama) as system:
        # A node with more room than any, that leaves without a word.
        (real,) = system.trunks
        offer = real._running.memberships._offer(BROKER)
        room = replace(offer.load, kv_positions_free=1 << 40, kv_positions_total=1 << 40)
        answers: list[Frame] = []
        link = PeerLink(system.broker.nodes, answers.append, max_part_bytes=1 << 20)
        async with link:
            link.send(Frame.build(Kind.REGISTER, replace(offer, name="gone", load=room)).parts())
            await until(lambda: bool(answers))
        async with system.client.session(MOST) as session:
            came = await session.advance(TOKENS, as_they_are)
            assert session.node == real.name
    assert_equal(came, oracle(tiny_llama, TOKENS))


async def test_a_session_that_its_node_holds_empty_is_brought_up_to_date(tiny_llama: Path) -> None:
    async with running(tiny_llama) as system, system.client.session(MOST) as session:
        await session.advance(TOKENS[:100], as_they_are)
        # It was let go of, and a late copy of OPEN opened it again under its id.
        (node,) = system.trunks
        now = asyncio.get_running_loop().time()
        over = Frame.build(Kind.CLOSE, Nothing(), session=session._trunk.id)
        node._act(node._running.sessions.receive(over, now))
        opening = Open(
            fingerprint=system.client.model.fingerprint, max_positions=MOST, dtype=WireDtype.FP32
        )
        again = Frame.build(Kind.OPEN, opening, session=session._trunk.id)
        node._act(node._running.sessions.receive(again, now))
        came = await session.advance(TOKENS[100:], as_they_are)
        assert session.recoveries == 1
        # The empty one does not wait for its lease.
        await until(lambda: node.sessions == 1)
    assert_equal(came, oracle(tiny_llama, TOKENS))


@pytest.mark.parametrize("given_up", [False, True], ids=["goes on", "given up between"])
async def test_a_session_outlives_a_node_that_is_lost_while_it_is_brought_up_to_date(
    tiny_llama: Path, given_up: bool
) -> None:
    async with running(tiny_llama, trunks=0) as system, Joining(system) as nodes:
        await nodes.join("first", 1)
        async with system.client.session(MOST) as session:
            await session.advance(TOKENS[:-1], as_they_are)
            second = await nodes.join("second", 1)
            await nodes.leave("first")
            going_on = asyncio.create_task(session.advance(TOKENS[-1:], as_they_are))
            await until(lambda: second.sessions == 1)
            await sent_more(session)
            await nodes.join("third", 1)
            if given_up:
                going_on.cancel()
                await asyncio.wait([going_on])
            await nodes.leave("second")
            if given_up:
                going_on = asyncio.create_task(session.advance(TOKENS[-1:], as_they_are))
            came = await going_on
            assert session.node == "third"
    assert_equal(came, oracle(tiny_llama, TOKENS))


@pytest.mark.parametrize("computed", [False, True], ids=["on its way", "computed meanwhile"])
async def test_a_cancelled_advance_leaves_the_session_as_it_was(
    tiny_llama: Path, computed: bool
) -> None:
    async with running(tiny_llama) as system, system.client.session(MOST) as session:
        await session.advance(TOKENS[:50], as_they_are)
        batcher = system.trunks[0]._running.batcher
        steps = batcher.stats.steps
        given_up = asyncio.create_task(session.advance([1] * 200, as_they_are))
        await sent_more(session)
        given_up.cancel()
        await asyncio.wait([given_up])
        if computed:
            await until(lambda: batcher.stats.steps > steps)
        assert session.cached == 50
        came = await session.advance(TOKENS[50:], as_they_are)
    assert_equal(came, oracle(tiny_llama, TOKENS))


async def test_a_reader_that_fails_leaves_the_session_as_it_was(tiny_llama: Path) -> None:
    def fail(_: torch.Tensor) -> None:
        raise ZeroDivisionError

    async with running(tiny_llama) as system, system.client.session(MOST) as session:
        await session.advance(TOKENS[:50], as_they_are)
        with pytest.raises(ZeroDivisionError):
            await session.advance([1, 2, 3], fail)
        came = await session.advance(TOKENS[50:], as_they_are)
    assert_equal(came, oracle(tiny_llama, TOKENS))


async def test_nothing_of_a_session_runs_on_when_it_has_ended(tiny_llama: Path) -> None:
    async with running(tiny_llama) as system:
        async with system.client.session(MOST) as session:
            await session.advance(TOKENS, as_they_are)
            assert leases() == 1
        await until(lambda: leases() == 0, seconds=1)


def leases() -> int:
    return sum(task.get_name() == "fedsea lease" for task in asyncio.all_tasks())
