"""The gateway as an ASGI application around a client node, to serve or to mount in another."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from fedsea_mq.settings import Settings
from nodes.client import ClientNode
from nodes.gateway.admission import Admission
from nodes.gateway.chat import ChatRequest
from nodes.gateway.completion import CompletionRequest
from nodes.gateway.door import Door
from nodes.gateway.endpoint import Endpoint
from nodes.gateway.errors import RequestRefused
from nodes.gateway.guard import Guard
from nodes.gateway.meter import Meter
from nodes.gateway.models import Models
from nodes.gateway.page_files import Page
from nodes.gateway.prepare import Preparer
from nodes.gateway.state import State

# To anybody who asks: what is missing is for those with a key.
_NOT_READY = "no trunk node takes sessions now"


def create_app(client: ClientNode, settings: Settings, door: Door | None = None) -> Starlette:
    """The application, for a client node that runs as long as it.

    It needs no lifespan, so it can be mounted: `Mount("/ai", create_app(client, settings))`. By
    default the `door` is as `settings.gateway` says.

    Raises:
        PlaintextRefused, KeyFileError, ConfigError: as the settings of `gateway` and `noise` are.
    """
    meter, admission = Meter(), Admission(settings.gateway.max_requests)
    models = Models(client, settings)
    state = State(client, settings, models, meter, admission)
    preparer = Preparer(client, settings.gateway, models, meter)
    chats = Endpoint(ChatRequest, preparer.chat, settings.gateway, admission)
    completions = Endpoint(CompletionRequest, preparer.completion, settings.gateway, admission)
    page = Page()
    return Starlette(
        routes=[
            *page.routes(),
            Route("/v1/chat/completions", chats, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            *_told(models, state),
        ],
        middleware=[Middleware(Guard, door=door or Door.of(settings.gateway), page=page.paths)],
        exception_handlers={HTTPException: _refused},
    )


def _told(models: Models, state: State) -> list[BaseRoute]:
    async def listed(_: Request) -> Response:
        return JSONResponse(models.listed())

    async def described(request: Request) -> Response:
        return JSONResponse(models.described(request.path_params["model"]))

    async def seen(_: Request) -> Response:
        return JSONResponse(await state.now())

    async def live(_: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def ready(_: Request) -> Response:
        if not await state.ready():
            raise RequestRefused(503, _NOT_READY, "not_ready", type="server_error")
        return JSONResponse({"status": "ready"})

    return [
        Route("/v1/models", listed),
        Route("/v1/models/{model:path}", described),
        Route("/v1/fedsea/state", seen),
        Route("/healthz", live),
        Route("/readyz", ready),
    ]


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = RequestRefused(error.status_code, error.detail, headers=dict(error.headers or {}))
    return said.response()
