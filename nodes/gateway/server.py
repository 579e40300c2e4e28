"""uvicorn as an async context manager, which leaves signals and logging to the process."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Self, cast

import uvicorn
from starlette.types import ASGIApp

from fedsea_mq.errors import ConfigError, EndpointUnavailable
from fedsea_mq.gateway_settings import GatewaySettings
from nodes.gateway.connection import Connection

# Longer than clients keep an idle connection, so that none is closed as it is used again.
_KEEP_ALIVE_S: Final = 65


class _Server(uvicorn.Server):
    """uvicorn's, but for what belongs to a process's entry point."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self.listening.set()


class HttpServer:
    """Serves an application while inside `async with`, at `url`.

    Raises on entry: `EndpointUnavailable` if it cannot listen there, `ConfigError` if the files of
    TLS are none.
    """

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self._app = app
        self._settings = settings
        self._server: _Server
        self._serving: asyncio.Task[None]
        self.url = ""

    async def __aenter__(self) -> Self:
        config = _config(self._app, self._settings)
        opened = _listen(self._settings)
        scheme = "http" if self._settings.tls_certificate is None else "https"
        self.url = f"{scheme}://{self._settings.host_in_url}:{opened.getsockname()[1]}"
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve([opened]), name="fedsea gateway")
        listening = asyncio.create_task(self._server.listening.wait())
        await asyncio.wait((self._serving, listening), return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.should_exit = True
        await self._serving


def _config(app: ASGIApp, settings: GatewaySettings) -> uvicorn.Config:
    connection = partial(Connection, stalled_s=settings.stalled_s, most=settings.max_connections)
    config = uvicorn.Config(
        app,
        # It is called like the class that uvicorn asks for.
        http=cast(Any, connection),
        log_config=None,
        access_log=False,  # one line a request is the endpoints' to write
        lifespan="off",
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"gateway.tls_certificate and gateway.tls_key: {error.strerror or error}"
        ) from error
    return config


def _listen(settings: GatewaySettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise EndpointUnavailable(
            f"gateway {settings.host}:{settings.port}: {error.strerror}"
        ) from error
