"""Streams of tokens from a process beside, timed by as little work here as it takes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import urlsplit

from fedsea_mq.cli.processes import Child

Tokens = Sequence[int]
# Asks for so many tokens after a prompt and takes them all; the seconds to the first.
Stream = Callable[[Tokens, int], Awaitable[float]]
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_MOST_BYTES: Final = 1 << 20
_LAST_CHUNK: Final = b"0\r\n\r\n"


@dataclass(slots=True)
class Streamed:
    """What came of many streams: `took_s` from the first request to the last token."""

    tokens: int
    took_s: float = 0.0
    generator_cpu_s: float = 0.0
    firsts_s: list[float] = field(default_factory=list)


async def closed_loop(stream: Stream, prompts: Sequence[Sequence[Tokens]], new: int) -> Streamed:
    """For each list of prompts a worker that streams one after the other."""
    done = Streamed(tokens=new * sum(map(len, prompts)))

    async def work(mine: Sequence[Tokens]) -> None:
        for prompt in mine:
            done.firsts_s.append(await stream(prompt, new))

    begun, cpu = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for mine in prompts:
            group.create_task(work(mine))
    done.took_s = time.perf_counter() - begun
    done.generator_cpu_s = time.process_time() - cpu
    return done


class NativeStreams:
    """Of a client node that is driven by JSON lines. Use with `async with`."""

    def __init__(self, client: Child) -> None:
        self._client = client
        # Of each answer, whether what came is its end.
        self._came: dict[str, asyncio.Queue[bool]] = {}
        self._asked = 0
        self._reader: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reader.cancel()
        await asyncio.wait([self._reader])

    async def _read(self) -> None:
        async for line in self._client.lines():
            if "error" in line:
                raise RuntimeError(f"{line['error']}: {line['message']}")
            self._came[line["id"]].put_nowait("done" in line)

    async def stream(self, prompt: Tokens, new: int) -> float:
        """One answer."""
        self._asked += 1
        name = str(self._asked)
        came = self._came[name] = asyncio.Queue()
        sampling = {"max_new_tokens": new, "ignore_eos": True}
        begun = time.perf_counter()
        self._client.ask({"id": name, "tokens": list(prompt), "sampling": sampling})
        await came.get()
        first_s = time.perf_counter() - begun
        while not await came.get():
            pass
        del self._came[name]
        return first_s


class GatewayStreams:
    """Of a gateway, over HTTP. Use with `async with`."""

    def __init__(self, url: str, model: str) -> None:
        self._at = urlsplit(url)
        self._model = model
        self._idle: list[_Connection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._idle:
            connection[1].close()

    async def stream(self, prompt: Tokens, new: int) -> float:
        """One answer, on a connection that is kept for the next."""
        begun = time.perf_counter()
        reader, writer = await self._connection()
        writer.write(self._request(prompt, new))
        head = await reader.readuntil(b"\r\n\r\n")
        said = bytearray(await reader.read(_MOST_BYTES))
        first_s = time.perf_counter() - begun
        if b" 200 " not in head:
            raise RuntimeError(f"{(head + said)!r}")
        while not said.endswith(_LAST_CHUNK) and (more := await reader.read(_MOST_BYTES)):
            said += more
        if f'"completion_tokens": {new}'.encode() not in said:
            raise RuntimeError(f"not {new} tokens: {said[-1000:]!r}")
        self._idle.append((reader, writer))
        return first_s

    async def _connection(self) -> _Connection:
        if self._idle:
            return self._idle.pop()
        return await asyncio.open_connection(self._at.hostname, self._at.port)

    def _request(self, prompt: Tokens, new: int) -> bytes:
        asked = {
            "model": self._model,
            "prompt": list(prompt),
            "max_tokens": new,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        body = json.dumps(asked).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: {self._at.netloc}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body
