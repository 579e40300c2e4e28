"""Spans by OpenTelemetry's SDK, sent to a collector as OTLP over HTTP. Needs the extra `otel`."""

from __future__ import annotations

import asyncio
import time
from typing import Final, Self

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace import Span as SdkSpan

from fedsea_mq import __version__
from fedsea_mq.telemetry.settings import TelemetrySection
from fedsea_mq.telemetry.spans import Fact, Span
from fedsea_mq.telemetry.trace import RequestTrace, TraceContext

# Whoever ends waits this long, at most, for a collector to take what is left.
_EXPORT_S: Final = 3


class OtlpSpans:
    """A provider of its own, nothing global; its thread sends. Use with `async with`.

    Spans beyond what the thread can send are let go of, as the SDK logs.
    """

    def __init__(self, settings: TelemetrySection, role: str, node: str) -> None:
        assert settings.otlp_endpoint is not None
        self._ids = _ChosenIds()
        self._provider = TracerProvider(
            # By the trace id alone: all parties with the same share agree on each trace.
            sampler=TraceIdRatioBased(settings.sample),
            resource=Resource.create(
                {"service.name": f"fedsea-{role}", "service.instance.id": node}
            ),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        endpoint = f"{settings.otlp_endpoint.rstrip('/')}/v1/traces"
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("fedsea_mq", __version__)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._provider.shutdown)

    def request(self, name: str, trace: RequestTrace) -> Span:
        """A client's request begins, under the ids that its trace has."""
        self._ids.chosen = trace.own
        parent = Context() if trace.caller is None else _remote(trace.caller)
        return _OtlpSpan(self._tracer.start_span(name, parent))

    def part(self, name: str, of: TraceContext, began_s_ago: float = 0.0) -> Span:
        """A span below the client's."""
        began_ns = time.time_ns() - round(began_s_ago * 1e9)
        return _OtlpSpan(self._tracer.start_span(name, _remote(of), start_time=began_ns))


class _ChosenIds(RandomIdGenerator):
    """Gives one span the ids that were chosen for it, all others random ones."""

    def __init__(self) -> None:
        self.chosen: TraceContext | None = None

    def generate_trace_id(self) -> int:
        if self.chosen is None:
            return super().generate_trace_id()
        return int.from_bytes(self.chosen.trace_id)

    def generate_span_id(self) -> int:
        """The SDK asks for this last."""
        chosen, self.chosen = self.chosen, None
        return super().generate_span_id() if chosen is None else int.from_bytes(chosen.span_id)


class _OtlpSpan:
    def __init__(self, span: SdkSpan) -> None:
        self._span = span

    def event(self, name: str, **facts: Fact) -> None:
        self._span.add_event(name, facts)

    def end(self, error: str | None = None, **facts: Fact) -> None:
        self._span.set_attributes(facts)
        if error is not None:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end()


def _remote(span: TraceContext) -> Context:
    """Where a span below another party's begins."""
    above = SpanContext(
        int.from_bytes(span.trace_id),
        int.from_bytes(span.span_id),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )
    return set_span_in_context(NonRecordingSpan(above), Context())
