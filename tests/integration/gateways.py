"""A gateway in front of a client node, over a real broker and trunk node, for OpenAI's client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI

from nodes import TrunkNode
from nodes.gateway import GatewayNode
from tests.integration.systems import running

PASSAGE = (
    "Kewyn is a weaver. She lives in Marshmoor. Kewyn keeps a striped dog. In spring she bought "
    "twelve combs from Dador. She likes salt herring.\n"
)
SAID = [{"role": "user", "content": PASSAGE + "Say it again."}]
ANSWER = "Marshmoor"
ASKED = [{"role": "user", "content": PASSAGE + "Where does Kewyn live?"}]


@dataclass(frozen=True)
class Gateway:
    """What a test asks."""

    url: str
    trunk: TrunkNode
    openai: AsyncOpenAI
    http: httpx.AsyncClient

    async def chat(self, **fields: Any) -> Any:
        """A chat by OpenAI's client, greedy unless it is said otherwise."""
        asked = {"model": "embedded", "messages": ASKED, "temperature": 0, **fields}
        return await self.openai.chat.completions.create(**asked)

    async def complete(self, prompt: Any, **fields: Any) -> Any:
        """A completion by OpenAI's client, greedy unless it is said otherwise."""
        asked = {"model": "embedded", "prompt": prompt, "temperature": 0, **fields}
        return await self.openai.completions.create(**asked)

    async def refused(self, path: str = "/v1/chat/completions", **fields: Any) -> tuple[int, Any]:
        """Status and error of a request that is refused; a chat, with some fields changed."""
        asked = {"model": "embedded", "messages": ASKED, **fields}
        reply = await self.http.post(path, json=asked)
        return reply.status_code, reply.json()["error"]


@asynccontextmanager
async def gateway(
    *overrides: str, model: Path | str = "embedded", key: str = "none"
) -> AsyncIterator[Gateway]:
    """Noise off and fp32 unless overridden."""
    async with (
        running(model, "gateway.port=0", *overrides) as system,
        GatewayNode(system.settings) as node,
        httpx.AsyncClient(base_url=node.url) as http,
        AsyncOpenAI(base_url=f"{node.url}/v1", api_key=key, max_retries=0) as client,
    ):
        yield Gateway(node.url, system.trunks[0], client, http)
