"""The metrics endpoint over real connections: what it answers, what it bounds, how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families as families

from fedsea_mq.errors import EndpointUnavailable
from fedsea_mq.telemetry import measures
from fedsea_mq.telemetry.endpoint import MetricsEndpoint
from fedsea_mq.telemetry.node_metrics import NodeMetrics
from fedsea_mq.telemetry.settings import MetricsSection

ANY_PORT = MetricsSection(port=0)


def node() -> NodeMetrics:
    metrics = NodeMetrics("trunk", "trunk-7")
    metrics.read(lambda: [measures.SESSIONS.of(3), measures.BYTES.of(5, "up")])
    metrics.histogram(measures.STEP_SECONDS)(0.004)
    return metrics


@asynccontextmanager
async def endpoint(settings: MetricsSection = ANY_PORT) -> AsyncIterator[MetricsEndpoint]:
    async with MetricsEndpoint(settings, node().registry) as shown:
        yield shown


@asynccontextmanager
async def connection(
    shown: MetricsEndpoint,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    at = urlsplit(shown.url or "")
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def said(shown: MetricsEndpoint, request: bytes) -> bytes:
    """The first line of the answer to these bytes."""
    async with connection(shown) as (reader, writer):
        writer.write(request)
        return (await reader.readline()).strip()


async def test_readings_and_distributions_are_shown_with_role_and_node() -> None:
    async with endpoint() as shown, httpx.AsyncClient() as http:
        answer = await http.get(str(shown.url))
    assert answer.status_code == 200
    samples = {sample.name: sample for family in families(answer.text) for sample in family.samples}
    assert samples["fedsea_sessions"].value == 3
    assert samples["fedsea_sessions"].labels == {"role": "trunk", "node": "trunk-7"}
    assert samples["fedsea_bytes_total"].labels["direction"] == "up"
    assert samples["fedsea_step_seconds_count"].value == 1
    assert samples["process_resident_memory_bytes"].value > 0
    assert samples["fedsea_build_info"].labels["version"]


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 Not Found"),
        (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", b"HTTP/1.1 200 OK"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"HTTP/1.1 405 Method Not Allowed"),
        (b"hello\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"\x16\x03\x01\x00\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"GET /metrics SPDY\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"GET " + b"x" * 20_000, b"HTTP/1.1 431 Request Header Fields Too Large"),
        (b"GET /metrics HTTP/1.1\r\nAccept: \xff\xfe;;q=\r\n\r\n", b"HTTP/1.1 200 OK"),
    ],
)
async def test_what_is_asked_wrongly_is_told_so(request_: bytes, answer: bytes) -> None:
    async with endpoint() as shown:
        assert await said(shown, request_) == answer


async def test_beyond_a_few_connections_others_are_sent_away_and_come_back_later() -> None:
    async with endpoint() as shown:
        idle = [connection(shown) for _ in range(16)]
        for one in idle:
            await one.__aenter__()
        assert b"503" in await said(shown, b"GET /metrics HTTP/1.1\r\n\r\n")
        for one in idle:
            await one.__aexit__(None, None, None)
        async with asyncio.timeout(10):
            while b"200" not in await said(shown, b"GET /metrics HTTP/1.1\r\n\r\n"):
                await asyncio.sleep(0.01)


async def test_it_ends_with_connections_open_and_leaves_its_port() -> None:
    async with endpoint() as shown:
        url = urlsplit(str(shown.url))
        async with connection(shown) as (reader, _):
            await shown.__aexit__()
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await reader.readexactly(1)
    again = MetricsSection(port=url.port)
    async with endpoint(again) as shown:
        assert urlsplit(str(shown.url)).port == url.port


async def test_a_port_that_is_taken_is_a_typed_error() -> None:
    async with endpoint() as shown:
        taken = MetricsSection(port=urlsplit(str(shown.url)).port)
        with pytest.raises(EndpointUnavailable, match="cannot serve metrics on"):
            await endpoint(taken).__aenter__()


async def test_without_a_port_there_is_nothing() -> None:
    async with endpoint(MetricsSection()) as shown:
        assert shown.url is None
