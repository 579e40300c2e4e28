"""What crosses the network and what a trunk logs: no text, no token ids, no un-noised states.

Every byte of a session is captured on both sides of the broker, and past it, by forwarders that
stand where a wiretap would.
"""

from __future__ import annotations

import json
import logging
import struct
from contextlib import AsyncExitStack

import msgpack
import pytest
import torch

from broker import Broker
from fedsea_mq.model.attention import Span
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.settings import Settings
from nodes import ClientNode, TrunkNode
from tests.integration.forwarding import forwarding
from tests.integration.systems import EXACT

TEXT = "The story is: Marina keeps a red fox. Toban is a baker in Ashford. Who keeps the fox?"


@pytest.mark.parametrize("direct", [False, True], ids=["relayed", "direct"])
async def test_no_text_and_no_token_ids_on_the_wire_or_in_the_logs(
    caplog: pytest.LogCaptureFixture, direct: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = Settings.load(None, [*EXACT, "noise.mode=relative", "log.level=debug"])
    settings = settings.replace(
        trunk={"direct": "tcp://127.0.0.1:*" if direct else None}, client={"direct": direct}
    )
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(settings.broker))
        client_tap = await stack.enter_async_context(forwarding(broker.clients))
        node_tap = await stack.enter_async_context(forwarding(broker.nodes))
        door_tap = await stack.enter_async_context(forwarding())
        settings = settings.replace(
            broker={"clients": client_tap.endpoint, "nodes": node_tap.endpoint}
        )
        trunk = await stack.enter_async_context(TrunkNode(settings))
        await trunk.registered()
        if trunk.direct is not None:
            door_tap.target = trunk.direct
            node_tap.rewrites = {trunk.direct.encode(): door_tap.endpoint.encode()}
        client = await stack.enter_async_context(ClientNode(settings))
        prompt = list(client.tokenizer(TEXT)["input_ids"])
        sampling = SamplingSettings(max_new_tokens=24, ignore_eos=True)
        answer = await client.generate(prompt, sampling).complete()
        clean = _clean_states(client, prompt)
    tokens = prompt + answer.tokens
    heard = [bytes(tap.heard) for tap in (client_tap, node_tap, door_tap)]
    # The states of the whole prompt did cross these links: the wiretap hears what there is.
    crossed = [len(bytes_) > len(tokens) * clean.shape[1] * 4 for bytes_ in heard]
    assert crossed == ([False, False, True] if direct else [True, True, False])
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
