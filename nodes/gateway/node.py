"""The gateway node: a client node and the HTTP server in front of it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Self

from fedsea_mq.log import get_logger
from fedsea_mq.privacy.audited import too_much
from fedsea_mq.settings import Settings
from nodes.client import ClientNode
from nodes.gateway.app import create_app
from nodes.gateway.door import Door
from nodes.gateway.models import Models
from nodes.gateway.server import HttpServer

_log = get_logger(__name__)


class GatewayNode:
    """Answers HTTP requests while inside `async with`, at `url`, by its `client` node.

    Raises, when made: `PlaintextRefused` or `KeyFileError`, as the settings of `gateway` are. On
    entry: what `ClientNode` raises, `EndpointUnavailable` if the port is taken, and `ConfigError`
    if the files of TLS or of an audit are none.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._door = Door.of(settings.gateway)
        self._stack = AsyncExitStack()
        self.client = ClientNode(settings)
        self.url = ""
        self.models: list[str] = []

    async def __aenter__(self) -> Self:
        settings = self._settings
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(self.client)
            self._warn_of_recovery(client)
            self.models = Models(client, settings).names
            app = create_app(client, settings, self._door)
            server = await stack.enter_async_context(HttpServer(app, settings.gateway))
            self.url = server.url
            self._stack = stack.pop_all()
        _log.info("gateway ready", url=self.url, keys=settings.gateway.api_keys is not None)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.__aexit__(None, None, None)

    def _warn_of_recovery(self, client: ClientNode) -> None:
        found = too_much(self._settings.noise, client.model.fingerprint)
        if found is not None:
            _log.warning(f"{found}; see docs/privacy.md")
