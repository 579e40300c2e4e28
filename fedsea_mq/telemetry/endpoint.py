"""`GET /metrics` over HTTP, on the node's own event loop.

On the loop, so that sources read the node between two of its callbacks and never in the middle of
one. What a scraper may send is a request's head of a few kilobytes, in good time, over few
connections; each answer ends its connection.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final, Self

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from fedsea_mq.errors import EndpointUnavailable
from fedsea_mq.telemetry.settings import MetricsSection

_PATH: Final = "/metrics"
_MAX_HEAD_BYTES: Final = 8192
_MAX_CONNECTIONS: Final = 16
_PATIENCE_S: Final = 5.0
_PLAIN: Final = "text/plain; charset=utf-8"
_END_OF_HEAD: Final = b"\r\n\r\n"


class MetricsEndpoint:
    """Serves a node's registry, if the settings have a port. Use with `async with`.

    `url` is where, with the port that 0 was given; None if nowhere. Raises `EndpointUnavailable`
    on entry.
    """

    def __init__(self, settings: MetricsSection, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._registry = registry
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self.url: str | None = None

    async def __aenter__(self) -> Self:
        host, port = self._settings.host, self._settings.port
        if port is None:
            return self
        try:
            self._server = await asyncio.start_server(
                self._connected, host, port, limit=_MAX_HEAD_BYTES
            )
        except OSError as error:
            raise EndpointUnavailable(
                f"cannot serve metrics on {host} port {port}: {error.strerror}"
            ) from error
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}{_PATH}"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is None:
            return
        self._server.close()
        for writer in list(self._connections):
            writer.transport.abort()
        await self._server.wait_closed()
        self._server = self.url = None

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                writer.write(await self._answered(reader))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, ConnectionError):
            writer.transport.abort()
        finally:
            self._connections.discard(writer)

    async def _answered(self, reader: asyncio.StreamReader) -> bytes:
        if len(self._connections) > _MAX_CONNECTIONS:
            return _response(HTTPStatus.SERVICE_UNAVAILABLE)
        try:
            return self._answer(await reader.readuntil(_END_OF_HEAD))
        except asyncio.LimitOverrunError:
            return _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        except asyncio.IncompleteReadError:
            return _response(HTTPStatus.BAD_REQUEST)

    def _answer(self, head: bytes) -> bytes:
        # Nothing of the headers matters: there is one format, which every scraper takes.
        words = head.partition(b"\r\n")[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response(HTTPStatus.BAD_REQUEST)
        if words[0] != b"GET":
            return _response(HTTPStatus.METHOD_NOT_ALLOWED)
        if words[1].partition(b"?")[0] != _PATH.encode():
            return _response(HTTPStatus.NOT_FOUND)
        return _response(HTTPStatus.OK, generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4)


def _response(status: HTTPStatus, body: bytes | None = None, content_type: str = _PLAIN) -> bytes:
    body = f"{status.phrase}\n".encode() if body is None else body
    head = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        head.append("Allow: GET")
    return "\r\n".join(head).encode() + _END_OF_HEAD + body
