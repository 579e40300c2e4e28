"""A TCP forwarder that stands where a wiretap, a bad network or a meddler would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Forwarder:
    """Forwards connections to an endpoint and keeps every byte, in either direction.

    `rewrites` are made in what passes; both texts have the same length.
    """

    def __init__(self, endpoint: str = "") -> None:
        self.target = endpoint
        self.endpoint = ""
        self.heard = bytearray()
        self.connections = 0
        self.rewrites: dict[bytes, bytes] = {}
        self.swallows = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Begin to take connections."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.endpoint = f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Break every connection, and take no more."""
        assert self._server is not None
        self._server.close()
        self.break_connections()

    def break_connections(self) -> None:
        """Break every connection; new ones are taken."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        host, port = self.target.removeprefix("tcp://").split(":")
        there = await asyncio.open_connection(host, int(port))
        self._writers |= {writer, there[1]}
        await asyncio.gather(self._copy(reader, there[1]), self._copy(there[0], writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(1 << 16):
                self.heard += chunk
                for old, new in self.rewrites.items():
                    chunk = chunk.replace(old, new)
                if not self.swallows:
                    writer.write(chunk)
                    await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
            self._writers.discard(writer)


@asynccontextmanager
async def forwarding(endpoint: str = "") -> AsyncIterator[Forwarder]:
    """A forwarder to an endpoint, which may be named later."""
    forwarder = Forwarder(endpoint)
    await forwarder.listen()
    try:
        yield forwarder
    finally:
        forwarder.cut()
