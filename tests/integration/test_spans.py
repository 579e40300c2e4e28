"""Spans as a collector receives them: a real HTTP receiver, and what OTLP's protobuf says there."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from fedsea_mq.errors import ConfigError, FingerprintMismatch
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.telemetry.settings import TelemetrySection
from fedsea_mq.telemetry.spans import NO_SPANS, spans_of
from fedsea_mq.telemetry.trace import CALLER, TraceContext
from nodes import ClientNode
from tests.integration.systems import running

PROMPT = "Kewyn is a weaver."
SHORT = SamplingSettings(max_new_tokens=4, ignore_eos=True)
CALLER_S = TraceContext(bytes(range(16)), b"caller01")


@dataclass
class Collector:
    """Where spans are sent, and those that came: by service and name."""

    endpoint: str = ""
    came: list[tuple[str, Span]] = field(default_factory=list)
    raw: bytes = b""

    def take(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces"
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            said = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.came += [(said["service.name"], span) for span in scope.spans]

    def one(self, service: str, name: str) -> Span:
        (span,) = self.all(service, name)
        return span

    def all(self, service: str, name: str) -> list[Span]:
        return [s for by, s in self.came if (by, s.name) == (f"fedsea-{service}", name)]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with listening() as made:
        yield made


@contextmanager
def listening() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def facts(span: Span) -> dict[str, object]:
    return {
        pair.key: getattr(pair.value, str(pair.value.WhichOneof("value")))
        for pair in span.attributes
    }


async def test_a_request_is_one_trace_over_all_parties(collector: Collector) -> None:
    async with running("embedded", f"telemetry.otlp_endpoint={collector.endpoint}") as system:
        generation = system.client.generate(PROMPT, SHORT)
        done = await generation.complete()
    request, placed, session = (
        collector.one("client", "request"),
        collector.one("broker", "place session"),
        collector.one("trunk", "trunk session"),
    )
    assert {one.trace_id.hex() for one in (request, placed, session)} == {generation.trace_id}
    assert request.parent_span_id == b""
    assert placed.parent_span_id == session.parent_span_id == request.span_id
    assert facts(request)["new_tokens"] == 4
    assert facts(request)["prompt_tokens"] == done.stats.prompt_tokens
    assert [event.name for event in request.events] == ["first token"]
    assert [event.name for event in session.events] == ["step"] * 4
    assert request.start_time_unix_nano <= placed.end_time_unix_nano <= session.end_time_unix_nano
    assert facts(placed)["node"] == system.trunks[0].name
    assert all(span.status.code != Status.STATUS_CODE_ERROR for _, span in collector.came)
    for text in (*PROMPT.split(), *done.text.split()):
        assert len(text) < 4 or text.encode() not in collector.raw


async def test_a_request_goes_on_with_its_callers_trace_and_a_conversation_is_one(
    collector: Collector,
) -> None:
    async with running("embedded", f"telemetry.otlp_endpoint={collector.endpoint}") as system:
        token = CALLER.set(CALLER_S)
        conversation = system.client.conversation(SHORT, 100)
        CALLER.reset(token)
        async with conversation:
            for text in ("Hello", "More"):
                assert (await conversation.say(text).complete()).tokens
        await system.client.generate(PROMPT, SHORT).complete()
    whole = collector.one("client", "conversation")
    assert (whole.trace_id, whole.parent_span_id) == (CALLER_S.trace_id, CALLER_S.span_id)
    turns = [s for s in collector.all("client", "request") if s.trace_id == CALLER_S.trace_id]
    assert [turn.parent_span_id for turn in turns] == [whole.span_id] * 2
    first, second = collector.all("trunk", "trunk session")
    assert first.parent_span_id == whole.span_id
    assert second.trace_id != CALLER_S.trace_id


async def test_what_fails_says_so_by_the_errors_name(collector: Collector) -> None:
    to_collector = f"telemetry.otlp_endpoint={collector.endpoint}"
    async with running("embedded", to_collector) as system:
        other = system.settings.replace(model={"head_blocks": 2})
        async with ClientNode(other) as client:
            with pytest.raises(FingerprintMismatch):
                await client.generate(PROMPT, SHORT).complete()
    for span in (collector.one("client", "request"), collector.one("broker", "place session")):
        assert span.status.code == Status.STATUS_CODE_ERROR
        assert span.status.message == "FingerprintMismatch"
    assert collector.all("trunk", "trunk session") == []


async def test_a_collector_that_is_away_costs_spans_and_nothing_else() -> None:
    with listening() as gone:
        endpoint = gone.endpoint
    async with spans_of(TelemetrySection(otlp_endpoint=endpoint), "trunk", "trunk-1") as spans:
        span = spans.part("trunk session", CALLER_S)
        span.event("step", positions=1)
        span.end()


async def test_without_an_endpoint_nothing_is_recorded() -> None:
    async with spans_of(TelemetrySection(), "trunk", "trunk-1") as spans:
        assert spans is NO_SPANS


async def test_without_the_library_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "fedsea_mq.telemetry.otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match="the extra otel"):
        async with spans_of(TelemetrySection(otlp_endpoint="http://127.0.0.1:1"), "client", "c"):
            pass
