"""The network link of one process, laid through this one: it can be cut, held up and mended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, Self

_CHUNK: Final = 1 << 16


class Cable:
    """Carries whoever connects to `endpoint` on to `to`, an endpoint `tcp://HOST:PORT`.

    Use with `async with`.
    """

    def __init__(self, to: str) -> None:
        host, _, port = to.removeprefix("tcp://").rpartition(":")
        self._to = (host, int(port))
        self._is_cut = False
        self._flows = asyncio.Event()
        self._flows.set()
        self._ends: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        await self.plug()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.unplug()
        self.cut()

    @property
    def endpoint(self) -> str:
        """Where to connect to."""
        return f"tcp://127.0.0.1:{self._port}"

    async def plug(self) -> None:
        """Listen, as the other end does again."""
        if self._server is None:
            self._server = await asyncio.start_server(self._carry, "127.0.0.1", self._port)
            self._port = int(self._server.sockets[0].getsockname()[1])

    def unplug(self) -> None:
        """Have connections refused, as they are where nobody listens."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def cut(self) -> None:
        """Break what is connected, and whatever connects until it is mended."""
        self._is_cut = True
        for end in self._ends:
            end.transport.abort()

    def hold(self) -> None:
        """Let nothing through until it is mended; nothing is lost."""
        self._flows.clear()

    def mend(self) -> None:
        """Carry everything again."""
        self._is_cut = False
        self._flows.set()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = {writer}
        try:
            if self._is_cut:
                return
            there_reader, there_writer = await asyncio.open_connection(*self._to)
            ends.add(there_writer)
            self._ends |= ends
            await _either(self._copy(reader, there_writer), self._copy(there_reader, writer))
        except OSError:
            return  # nobody listens there, now: as without a cable
        finally:
            self._ends -= ends
            for end in ends:
                end.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK):
            await self._flows.wait()
            writer.write(chunk)
            await writer.drain()


async def _either(*ways: Coroutine[Any, Any, None]) -> None:
    """Wait until one of them ends, and end the others. Raises what ended it."""
    tasks = [asyncio.create_task(way) for way in ways]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
