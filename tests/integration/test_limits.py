"""What one client, and all connections together, may take of a broker: over real sockets."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from fedsea_mq.errors import Busy, LimitExceeded, PeerUnreachable
from fedsea_mq.model.sampling import SamplingSettings
from nodes import ClientNode
from tests.integration.systems import running

PROMPT = [1, 2, 3]
SIX = SamplingSettings(max_new_tokens=6, ignore_eos=True)
MANY = SamplingSettings(max_new_tokens=60, ignore_eos=True)


async def test_connections_beyond_the_limit_come_in_when_others_leave(tiny_llama: Path) -> None:
    async with (
        running(tiny_llama, "broker.max_connections=2", "client.give_up_s=1") as system,
        AsyncExitStack() as others,
    ):
        second = await others.enter_async_context(ClientNode(system.settings))
        await second.generate(PROMPT, SIX).complete()
        async with ClientNode(system.settings) as third:
            with pytest.raises(PeerUnreachable):
                await third.generate(PROMPT, SIX).complete()
            assert (await system.client.generate(PROMPT, SIX).complete()).tokens
            await others.aclose()
            async with asyncio.timeout(20):
                while True:
                    try:
                        assert (await third.generate(PROMPT, SIX).complete()).tokens
                        break
                    except PeerUnreachable:
                        continue


async def test_a_client_opens_no_more_sessions_than_it_may(tiny_llama: Path) -> None:
    limits = ["broker.client_sessions=2", "broker.client_positions=100", "client.give_up_s=0.5"]
    async with running(tiny_llama, *limits) as system, AsyncExitStack() as sessions:
        for _ in range(2):
            await sessions.enter_async_context(system.client.session(20))
        with pytest.raises(Busy, match="2 sessions"):
            await system.client.generate(PROMPT, SIX).complete()
        async with ClientNode(system.settings) as other:
            assert (await other.generate(PROMPT, SIX).complete()).tokens
        await sessions.aclose()
        with pytest.raises(LimitExceeded, match="100"):
            async with system.client.session(101):
                pass
        assert (await system.client.generate(PROMPT, SIX).complete()).tokens


async def test_a_client_that_sends_too_fast_is_slowed_down_and_loses_nothing(
    tiny_llama: Path,
) -> None:
    async with running(tiny_llama) as free:
        wanted = await free.client.generate(PROMPT, MANY).complete()
    async with running(tiny_llama, "broker.client_frames_per_s=20") as system:
        loop = asyncio.get_running_loop()
        began = loop.time()
        slowed = await system.client.generate(PROMPT, MANY).complete()
        took_s = loop.time() - began
    assert slowed.tokens == wanted.tokens
    assert slowed.stats.recoveries == 0
    assert took_s > (60 - 2 * 20) / 20 * 0.9
