"""Connections to the gateway whose peers do nothing, or take nothing, or are too many."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import pytest

from tests.integration.gateways import ANSWER, Gateway, gateway

STALLED = "gateway.stalled_s=0.5"
HEAD = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n"
# What anybody waits for here, at most.
SOON_S = 20


@asynccontextmanager
async def connected(
    up: Gateway, receives: int | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection, whose end here holds so many bytes that were not read."""
    opened = socket.socket()
    if receives is not None:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
    opened.setblocking(False)
    where = urlsplit(up.url)
    assert where.hostname is not None
    await asyncio.get_running_loop().sock_connect(opened, (where.hostname, where.port))
    reader, writer = await asyncio.open_connection(sock=opened)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def end_of(reader: asyncio.StreamReader) -> bytes:
    """What comes until the other side shuts the connection."""
    came = b""
    async with asyncio.timeout(SOON_S):
        try:
            while part := await reader.read(65_536):
                came += part
        except ConnectionResetError:
            pass
    return came


@pytest.mark.parametrize("said", [b"", b"GET /v1/mod", HEAD], ids=["nothing", "line", "half"])
async def test_who_sends_no_head_is_let_go(said: bytes) -> None:
    async with gateway(STALLED) as up, connected(up) as (reader, writer):
        writer.write(said)
        assert await end_of(reader) == b""


async def test_who_sends_a_head_byte_by_byte_is_let_go() -> None:
    async with gateway(STALLED) as up, connected(up) as (reader, writer):
        ended = asyncio.create_task(end_of(reader))
        while not ended.done():
            writer.write(b"x")
            await asyncio.sleep(0.05)
        assert await ended == b""


async def test_who_asks_again_in_time_is_answered_for_longer_than_one_may_take() -> None:
    async with gateway(STALLED) as up, connected(up) as (reader, writer):
        for _ in range(4):
            writer.write(HEAD + b"\r\n")
            async with asyncio.timeout(SOON_S):
                assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
                await reader.readuntil(b"}]}")
            await asyncio.sleep(0.2)


async def ask_until_shut(writer: asyncio.StreamWriter) -> None:
    async with asyncio.timeout(SOON_S):
        while True:
            writer.write((HEAD + b"\r\n") * 1000)
            await writer.drain()


async def test_who_takes_no_answers_is_let_go() -> None:
    async with gateway(STALLED) as up, connected(up, receives=4096) as (_, writer):
        with pytest.raises(ConnectionError):
            await ask_until_shut(writer)
        assert (await up.chat()).choices[0].message.content == ANSWER


async def test_more_connections_than_there_may_be_are_shut_and_earlier_ones_served() -> None:
    async with gateway("gateway.max_connections=2") as up, AsyncExitStack() as held:
        assert (await up.chat()).choices[0].message.content == ANSWER
        later = [await held.enter_async_context(connected(up)) for _ in range(200)]
        ends = [asyncio.create_task(end_of(reader)) for reader, _ in later]
        shut, _ = await asyncio.wait(ends, timeout=1)
        assert len(shut) == 200 - 1 - 64
        for end, (_, writer) in zip(ends, later, strict=True):
            if not end.done():
                writer.write(HEAD + b"connection: close\r\n\r\n")
        assert (await up.chat()).choices[0].message.content == ANSWER
        served, *told = [(await end)[:12] for end in ends if end not in shut]
        assert served == b"HTTP/1.1 200"
        assert told == [b"HTTP/1.1 503"] * 64
