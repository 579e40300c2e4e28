"""A cable carries bytes both ways, until it is cut or held up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from fedsea_mq.cli.chaos.live.cable import Cable


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(1 << 16):
        writer.write(chunk)
        await writer.drain()
    writer.close()


@pytest.fixture
async def cable() -> AsyncIterator[Cable]:
    """To a server that says again what it is told."""
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    async with server, Cable(f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}") as cable:
        yield cable


async def connect(cable: Cable) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = cable.endpoint.removeprefix("tcp://").split(":")
    return await asyncio.open_connection(host, int(port))


async def test_it_carries_much_in_order(cable: Cable) -> None:
    reader, writer = await connect(cable)
    sent = bytes(range(256)) * 4096
    writer.write(sent)
    assert await reader.readexactly(len(sent)) == sent
    writer.close()


async def test_held_up_it_loses_nothing(cable: Cable) -> None:
    reader, writer = await connect(cable)
    writer.write(b"before")
    assert await reader.readexactly(6) == b"before"
    cable.hold()
    writer.write(b"after")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.1)
    cable.mend()
    assert await reader.readexactly(5) == b"after"
    writer.close()


async def test_cut_it_breaks_connections_and_takes_none_until_it_is_mended(cable: Cable) -> None:
    reader, writer = await connect(cable)
    writer.write(b"x")
    await reader.readexactly(1)
    cable.cut()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    again, _ = await connect(cable)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await again.readexactly(1)
    cable.mend()
    reader, writer = await connect(cable)
    writer.write(b"y")
    assert await reader.readexactly(1) == b"y"
    writer.close()


async def test_to_where_nobody_listens_it_ends_the_connection() -> None:
    async with Cable("tcp://127.0.0.1:1") as cable:
        reader, _ = await connect(cable)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)


async def test_unplugged_it_refuses_connections_and_plugged_in_it_is_where_it_was(
    cable: Cable,
) -> None:
    endpoint = cable.endpoint
    cable.unplug()
    with pytest.raises(ConnectionRefusedError):
        await connect(cable)
    await cable.plug()
    assert cable.endpoint == endpoint
    reader, writer = await connect(cable)
    writer.write(b"z")
    assert await reader.readexactly(1) == b"z"
    writer.close()
