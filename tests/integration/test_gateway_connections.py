"""Connections to the gateway whose peers do nothing, or take nothing, or are too many."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import pytest

from nodes.gateway.connection import Connection
from tests.integration.gateways import ANSWER, Gateway, gateway
from tests.integration.systems import until

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


BUSY = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n"
JSON = b"content-type: application/json\r\n\r\n"


async def test_more_connections_than_there_may_be_are_shut_and_earlier_ones_served() -> None:
    async with gateway("gateway.max_connections=2") as up, AsyncExitStack() as held:
        first = [await held.enter_async_context(connected(up)) for _ in range(2)]
        for _, writer in first:
            writer.write(BUSY + JSON)
        later = [await held.enter_async_context(connected(up)) for _ in range(200)]
        ends = [asyncio.create_task(end_of(reader)) for reader, _ in later]
        await until(lambda: sum(end.done() for end in ends) >= 200 - 64, SOON_S)
        await asyncio.sleep(0.2)
        shut = {end for end in ends if end.done()}
        assert len(shut) == 200 - 64
        for end, (_, writer) in zip(ends, later, strict=True):
            if not end.done():
                writer.write(HEAD + b"\r\n")
        told = [(await end)[:12] for end in ends if end not in shut]
        assert told == [b"HTTP/1.1 503"] * 64
        for reader, writer in first:
            writer.write(b"{} is 9 b")
            assert b"HTTP/1.1 400" in await reader.readuntil(b"\r\n\r\n")


async def test_a_request_has_the_place_of_the_connection_that_is_idle_the_longest() -> None:
    async with gateway("gateway.max_connections=2") as up, AsyncExitStack() as held:
        opened = [await held.enter_async_context(connected(up)) for _ in range(3)]
        (idle, _), (kept, _), _ = opened
        for reader, writer in opened:
            writer.write(HEAD + b"\r\n")
            assert b"HTTP/1.1 200" in await reader.readuntil(b"\r\n\r\n")
            await reader.readuntil(b"}]}")
        assert await end_of(idle) == b""
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await kept.read(1)


async def test_who_says_nothing_holds_no_place_that_another_asks_for() -> None:
    async with gateway("gateway.max_connections=1") as up, connected(up) as (reader, _):
        assert (await up.chat()).choices[0].message.content == ANSWER
        assert await end_of(reader) == b""


CHUNKED = b"host: localhost\r\ntransfer-encoding: chunked\r\n"
NO_HTTP = {
    "after the answer": (b"POST /nowhere HTTP/1.1\r\n" + CHUNKED + b"\r\n", b"ZZ\r\n"),
    "at once": (b"POST /v1/completions HTTP/1.1\r\n" + CHUNKED + b"\r\nZZ\r\n", b""),
    "at once, nowhere": (b"POST /nowhere HTTP/1.1\r\n" + CHUNKED + b"\r\nZZ\r\n", b""),
    "of JSON": (b"POST /v1/completions HTTP/1.1\r\n" + CHUNKED + JSON + b"ZZ\r\n", b""),
}


@pytest.mark.parametrize(("first", "then"), NO_HTTP.values(), ids=NO_HTTP)
async def test_what_is_no_http_ends_the_connection_and_is_no_error_here(
    first: bytes, then: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with gateway() as up, connected(up) as (reader, writer):
        writer.write(first)
        assert b"HTTP/1.1 40" in await reader.readuntil(b"\r\n\r\n")
        writer.write(then)
        await end_of(reader)
        await asyncio.sleep(0.05)  # what answers it is told after the peer
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def connections() -> list[Connection]:
    """What is in memory of them, open or not."""
    gc.collect()
    return [one for one in gc.get_objects() if type(one) is Connection]


@pytest.mark.parametrize(
    "last",
    [
        HEAD + b"connection: close\r\n\r\n",
        BUSY.replace(b"content-length: 9", b"transfer-encoding: chunked") + JSON + b"ZZ\r\n",
    ],
    ids=["asked to", "no http"],
)
async def test_a_connection_that_closes_holds_no_place_while_nobody_takes_its_last_answers(
    last: bytes,
) -> None:
    terms = (STALLED, "gateway.max_connections=1")
    async with gateway(*terms) as up, connected(up, receives=4096) as (_, writer):
        await until(lambda: len(connections()) == 1)
        (connection,) = connections()
        its_socket = connection.transport.get_extra_info("socket")
        its_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        while not connection.transport.get_write_buffer_size():  # nor is it read here
            writer.write(HEAD.replace(b"/v1/models", b"/style.css") + b"\r\n")
            await asyncio.sleep(0.005)
        assert not connection.flow.write_paused
        # It still takes its answers, so nobody has its place.
        async with connected(up) as (reader, other):
            other.write(HEAD + b"\r\n")
            assert b"HTTP/1.1 503" in await reader.readuntil(b"\r\n\r\n")
        writer.write(last)
        await until(connection.transport.is_closing)
        await until(lambda: connection not in connection.connections)
        assert (await up.chat()).choices[0].message.content == ANSWER


async def test_part_of_a_head_behind_a_whole_request_is_late_too() -> None:
    async with gateway(STALLED) as up, connected(up) as (reader, writer):
        writer.write(HEAD + b"\r\n" + HEAD)
        assert (await end_of(reader)).count(b"HTTP/1.1 200") == 1


async def test_nothing_is_kept_of_a_connection_that_its_peer_reset() -> None:
    async with gateway() as up:
        async with connected(up) as (reader, writer):
            writer.write(HEAD + b"\r\n")
            await reader.readuntil(b"}]}")
            assert len(connections()) == 1
            reset = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        await until(lambda: not connections())
