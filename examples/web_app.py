"""A private chat in the browser: a Starlette app that holds a client node.

    fedsea up --config configs/one-machine.yaml
    .venv/bin/python examples/web_app.py --config configs/one-machine.yaml
    open http://127.0.0.1:8080

or, with a broker and a trunk node in the app's own event loop:

    .venv/bin/python examples/web_app.py --alone

The app sees the text, so it belongs on the user's machine. It has no login and listens on the
loopback interface only. It is meant for one person: all requests share one client node and so one
noise key, and somebody who shares a noise key with you and works with the trunk can test guesses at
what you wrote (docs/privacy.md).

`POST /chat` takes `{"messages": [...], "sampling": {...}}` and answers with server-sent events:
`data: {"text": ...}` as it comes, then the event `done`, or `error`. When the browser goes away the
generation is cancelled, and the trunk's KV cache with it.
"""

import argparse
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from broker import Broker
from fedsea_mq.errors import FedSeaError
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.settings import Settings
from nodes import ClientNode, TrunkNode
from nodes.client import Generation

PAGE = """<!doctype html><meta charset="utf-8"><title>fedsea</title>
<style>body{max-width:40em;margin:2em auto;font:16px sans-serif}textarea{width:100%}</style>
<textarea id="said" rows="6">Kewyn is a weaver. She lives in Marshmoor. Kewyn keeps a striped dog.
In spring she bought twelve combs from Dador. She likes salt herring.
Where does Kewyn live?</textarea>
<button id="ask">Ask</button> <button id="stop">Stop</button><p id="answer"></p>
<script>
const by = id => document.getElementById(id);
let running = new AbortController();
by("stop").onclick = () => running.abort();
by("ask").onclick = async () => {
  running.abort();
  running = new AbortController();
  by("answer").textContent = "";
  const messages = [{role: "user", content: by("said").value}];
  const reply = await fetch("/chat", {
    method: "POST", body: JSON.stringify({messages}), signal: running.signal,
  });
  if (!reply.ok) {
    by("answer").textContent = (await reply.json()).message;
    return;
  }
  let held = "";
  for await (const piece of reply.body.pipeThrough(new TextDecoderStream())) {
    const events = (held + piece).split("\\n\\n");
    held = events.pop();
    for (const event of events) {
      const data = JSON.parse(event.split("data: ")[1]);
      by("answer").textContent += data.text ?? data.message ?? "";
    }
  }
};
</script>"""


class ChatRequest(BaseModel):
    """The body of `POST /chat`."""

    model_config = ConfigDict(extra="forbid")

    messages: list[dict[str, str]] = Field(min_length=1)
    sampling: SamplingSettings = SamplingSettings()


def create_app(settings: Settings, *, alone: bool = False) -> Starlette:
    """The app; `alone` starts a broker and a trunk node in it, on free ports."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            chosen = await _start_system(stack, settings) if alone else settings
            app.state.client = await stack.enter_async_context(ClientNode(chosen))
            yield

    routes = [Route("/", page), Route("/chat", chat, methods=["POST"])]
    return Starlette(routes=routes, lifespan=lifespan)


async def _start_system(stack: AsyncExitStack, settings: Settings) -> Settings:
    """Start broker and trunk node; the settings with the ports that they got."""
    free = {"clients": "tcp://127.0.0.1:*", "nodes": "tcp://127.0.0.1:*"}
    local = settings.replace(broker=free)
    broker = await stack.enter_async_context(Broker(local.broker, local.security))
    settings = settings.replace(broker={"clients": broker.clients, "nodes": broker.nodes})
    trunk = await stack.enter_async_context(TrunkNode(settings))
    await trunk.registered()
    return settings


async def page(_: Request) -> Response:
    """The page."""
    return HTMLResponse(PAGE)


async def chat(request: Request) -> Response:
    """Stream the answer to the last message."""
    try:
        asked = ChatRequest.model_validate_json(await request.body())
    except ValidationError as error:
        wrong = [".".join(map(str, item["loc"])) + ": " + item["msg"] for item in error.errors()]
        return JSONResponse({"error": "InvalidRequest", "message": "; ".join(wrong)}, 400)
    client: ClientNode = request.app.state.client
    try:
        generation = client.chat(asked.messages, asked.sampling)
    except FedSeaError as error:
        return JSONResponse({"error": type(error).__name__, "message": str(error)}, 400)
    return StreamingResponse(_events(generation), media_type="text/event-stream")


async def _events(generation: Generation) -> AsyncIterator[str]:
    try:
        # Closed whatever happens: a reader that goes away must not keep a session on the trunk.
        async with aclosing(aiter(generation)) as tokens:
            async for token in tokens:
                if token.text:
                    yield _event({"text": token.text})
    except FedSeaError as error:
        yield _event({"error": type(error).__name__, "message": str(error)}, "error")
        return
    stats = generation.stats
    yield _event({"finish": generation.finish, "new_tokens": stats.new_tokens}, "done")


def _event(data: dict[str, Any], name: str | None = None) -> str:
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data)}\n\n"


def main() -> None:
    """Serve on the loopback interface."""
    parser = argparse.ArgumentParser(description="A private chat in the browser")
    parser.add_argument("--config", type=Path, help="YAML file; see configs/")
    parser.add_argument("--alone", action="store_true", help="with a broker and a trunk node")
    parser.add_argument("--port", type=int, default=8080)
    given = parser.parse_args()
    settings = Settings.load(given.config)
    torch.set_num_threads(settings.model.threads)
    uvicorn.run(create_app(settings, alone=given.alone), host="127.0.0.1", port=given.port)


if __name__ == "__main__":
    main()
