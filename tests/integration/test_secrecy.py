"""What crosses the network and what a trunk logs: no text, no token ids, no un-noised states.

Every byte of a session is captured on both sides of the broker, by forwarders that stand where a
wiretap would.
"""

from __future__ import annotations

import asyncio
import json
import logging
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgpack
import pytest
import torch

from broker import Broker
from fedsea_mq.model.attention import Span
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.settings import Settings
from nodes import ClientNode, TrunkNode
from tests.integration.systems import EXACT

TEXT = "The story is: Marina keeps a red fox. Toban is a baker in Ashford. Who keeps the fox?"


class Wiretap:
    """Forwards TCP connections to an endpoint and keeps every byte, in either direction."""

    def __init__(self, endpoint: str) -> None:
        self._host, port = endpoint.removeprefix("tcp://").split(":")
        self._port = int(port)
        self.heard = bytearray()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(self._host, self._port)
        await asyncio.gather(self._copy(reader, there[1]), self._copy(there[0], writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(1 << 16):
                self.heard += chunk
                writer.write(chunk)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def tapped(endpoint: str) -> AsyncIterator[tuple[Wiretap, str]]:
    tap = Wiretap(endpoint)
    server = await asyncio.start_server(tap.serve, "127.0.0.1", 0)
    try:
        yield tap, f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_no_text_and_no_token_ids_on_the_wire_or_in_the_logs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = Settings.load(None, [*EXACT, "noise.mode=relative", "log.level=debug"])
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(settings.broker))
        client_tap, clients = await stack.enter_async_context(tapped(broker.clients))
        node_tap, nodes = await stack.enter_async_context(tapped(broker.nodes))
        settings = settings.replace(broker={"clients": clients, "nodes": nodes})
        trunk = await stack.enter_async_context(TrunkNode(settings))
        await trunk.registered()
        client = await stack.enter_async_context(ClientNode(settings))
        prompt = list(client.tokenizer(TEXT)["input_ids"])
        sampling = SamplingSettings(max_new_tokens=24, ignore_eos=True)
        answer = await client.generate(prompt, sampling).complete()
        clean = _clean_states(client, prompt)
    tokens = prompt + answer.tokens
    heard = bytes(client_tap.heard), bytes(node_tap.heard)
    # The states of the whole prompt did cross both links: the wiretap hears what there is.
    assert all(len(bytes_) > len(tokens) * clean.shape[1] * 4 for bytes_ in heard)
    logs = "\n".join(json.dumps(record.__dict__, default=str) for record in caplog.records)
    assert "trunk ready" in logs
    for bytes_ in (*heard, logs.encode()):
        for secret in _secrets(TEXT, answer.text, tokens, clean):
            assert secret not in bytes_


def _clean_states(client: ClientNode, prompt: list[int]) -> torch.Tensor:
    head = client.model.head
    with torch.inference_mode():
        span = Span(head.run.new_cache(len(prompt)), 0, len(prompt))
        return head(torch.tensor(prompt), [span])


def _secrets(prompt: str, answer: str, tokens: list[int], clean: torch.Tensor) -> list[bytes]:
    """Every stretch of text, of ids in any plausible encoding, and of un-noised states."""
    texts = [text[i : i + 8].encode() for text in (prompt, answer) for i in range(len(text) - 7)]
    ids = [
        secret
        for i in range(len(tokens) - 4)
        for run in [tokens[i : i + 5]]
        for secret in (
            struct.pack("<5H", *run),
            struct.pack(">5H", *run),
            struct.pack("<5i", *run),
            struct.pack(">5i", *run),
            struct.pack("<5q", *run),
            b"".join(msgpack.packb(token) for token in run),
            json.dumps(run)[1:-1].encode(),
        )
    ]
    rows = [
        row.to(dtype).contiguous().view(torch.uint8).numpy().tobytes()[:16]
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
        for row in clean
    ]
    return [*texts, *ids, *rows]
