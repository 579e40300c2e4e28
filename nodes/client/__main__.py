"""`python -m nodes.client --config FILE`: a client node driven by JSON lines.

Requests come on standard input, one object a line: `id`, one of `prompt` (text), `messages` (chat)
or `tokens` (ids), and optionally `sampling`, `adapter` (a name, or null for none) and `logits` (a
file to write each step's logits to, as a NumPy array `[steps, vocab]`). Many run at once. Answers
go to standard output: each `token` as it comes, with the `text` that it completes, then `done` with
the whole and its cost, or `error`. The end of the input ends the process.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from fedsea_mq.entry import announce, run_process, settings_from_arguments
from fedsea_mq.errors import FedSeaError
from fedsea_mq.model.attention import compile_attention
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.serving.memory import peak_rss_bytes
from fedsea_mq.settings import Settings
from fedsea_mq.telemetry.endpoint import MetricsEndpoint
from nodes.client.generation import Generation
from nodes.client.node import USUAL, ClientNode

_MAX_LINE_BYTES = 16 << 20


class Request(BaseModel):
    """One line of the input."""

    model_config = ConfigDict(extra="forbid")

    id: str
    prompt: str | None = None
    messages: list[dict[str, str]] | None = None
    tokens: list[int] | None = None
    sampling: SamplingSettings = SamplingSettings()
    adapter: str | None = USUAL
    logits: Path | None = None

    @model_validator(mode="after")
    def _asks_once(self) -> Request:
        if sum(x is not None for x in (self.prompt, self.messages, self.tokens)) != 1:
            raise ValueError("give exactly one of prompt, messages and tokens")
        return self


async def serve(settings: Settings) -> None:
    """Answer requests until the input ends."""
    torch.set_num_threads(settings.model.threads)
    # Before any weight, but with the compiler of the attention: it is the same for every model.
    compile_attention(Numerics.of(settings.model).kv)
    baseline = peak_rss_bytes()
    async with (
        ClientNode(settings) as client,
        MetricsEndpoint(settings.metrics, client.metrics.registry) as shown,
    ):
        announce(
            ready="client",
            sigma=client.noise_std,
            head_rms=client.model.head_rms,
            baseline_rss=baseline,
            tensor_bytes=client.model.tensor_bytes,
            metrics=shown.url,
        )
        async with asyncio.TaskGroup() as running:
            async for line in _input_lines():
                running.create_task(_answer(client, line))
        announce(peak_rss=peak_rss_bytes())


async def _input_lines() -> AsyncIterator[bytes]:
    reader = asyncio.StreamReader(_MAX_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async for line in reader:
        yield line


async def _answer(client: ClientNode, line: bytes) -> None:
    try:
        request = Request.model_validate_json(line)
    except ValidationError as error:
        announce(**_id_of(line), error="InvalidRequest", message=_wrong(error))
        return
    steps: list[torch.Tensor] = []
    try:
        generation = _generation(client, request, steps)
        ids, texts = [], []
        async for token in generation:
            ids.append(token.id)
            texts.append(token.text)
            announce(id=request.id, token=token.id, text=token.text)
    except FedSeaError as error:
        announce(id=request.id, error=type(error).__name__, message=str(error))
        return
    try:
        if request.logits is not None:
            np.save(request.logits, torch.stack(steps).numpy())
    except OSError as error:
        announce(id=request.id, error="OSError", message=str(error.strerror))
        return
    announce(id=request.id, done=_report(generation, ids, "".join(texts)))


def _id_of(line: bytes) -> dict[str, str]:
    """The id of a line that asks wrongly, if that much can be read."""
    try:
        asked = json.loads(line)
    except ValueError:
        return {}
    named = isinstance(asked, dict) and isinstance(asked.get("id"), str)
    return {"id": asked["id"]} if named else {}


def _wrong(error: ValidationError) -> str:
    """Which fields, and what was expected: never what they held."""
    items = error.errors(include_input=False, include_url=False)
    return "; ".join(": ".join((*map(str, item["loc"]), item["msg"])) for item in items)


def _generation(client: ClientNode, request: Request, steps: list[torch.Tensor]) -> Generation:
    on_logits = None if request.logits is None else lambda logits: steps.append(logits.cpu())
    if request.messages is not None:
        return client.chat(
            request.messages, request.sampling, adapter=request.adapter, on_logits=on_logits
        )
    prompt = request.prompt if request.prompt is not None else request.tokens
    assert prompt is not None
    return client.generate(prompt, request.sampling, adapter=request.adapter, on_logits=on_logits)


def _report(generation: Generation, ids: list[int], text: str) -> dict[str, Any]:
    stats = generation.stats
    up, down = stats.bytes_per_token
    return {
        "text": text,
        "tokens": ids,
        "finish": generation.finish,
        "prompt_tokens": stats.prompt_tokens,
        "new_tokens": stats.new_tokens,
        "node": stats.node,
        "ttft_ms": round(stats.ttft_ms, 2),
        "tpot_ms": round(stats.tpot_ms, 2),
        "bytes_up_per_token": round(up, 1),
        "bytes_down_per_token": round(down, 1),
        "recoveries": stats.recoveries,
        "direct_share": round(stats.direct_share, 3),
    }


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the process."""
    settings = settings_from_arguments("fedsea_mq client node", arguments)
    return run_process(serve(settings), settings)


if __name__ == "__main__":
    sys.exit(main())
