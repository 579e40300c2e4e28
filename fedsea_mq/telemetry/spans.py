"""What a party did for a request, and when: recorded as spans, or by default not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from types import ModuleType
from typing import Final, Protocol

from fedsea_mq.errors import ConfigError
from fedsea_mq.telemetry.settings import TelemetrySection
from fedsea_mq.telemetry.trace import RequestTrace, TraceContext

# Sizes, counts, seconds and names; never text, ids of tokens, or states.
Fact = str | int | float


class Span(Protocol):
    """Something that takes time."""

    def event(self, name: str, **facts: Fact) -> None:
        """Something that happened meanwhile."""
        ...

    def end(self, error: str | None = None, **facts: Fact) -> None:
        """It is over; `error` names the class of what went wrong, if something did."""
        ...


class Spans(Protocol):
    """Where a party's spans go."""

    def request(self, name: str, trace: RequestTrace) -> Span:
        """A client's request begins."""
        ...

    def part(self, name: str, of: TraceContext, began_s_ago: float = 0.0) -> Span:
        """What this party does for somebody else's request begins, or began so long ago."""
        ...


class _NoSpan:
    def event(self, name: str, **facts: Fact) -> None:
        return

    def end(self, error: str | None = None, **facts: Fact) -> None:
        return


class _NoSpans:
    def request(self, name: str, trace: RequestTrace) -> Span:
        return NO_SPAN

    def part(self, name: str, of: TraceContext, began_s_ago: float = 0.0) -> Span:
        return NO_SPAN


NO_SPAN: Final[Span] = _NoSpan()
NO_SPANS: Final[Spans] = _NoSpans()


@asynccontextmanager
async def spans_of(settings: TelemetrySection, role: str, node: str) -> AsyncIterator[Spans]:
    """Where the spans of a node go, as the settings say.

    Raises, on entry:
        ConfigError: the extra `otel` is not installed.
    """
    if settings.otlp_endpoint is None:
        yield NO_SPANS
        return
    # Reading the library takes longer than others on the loop may wait.
    otlp = await asyncio.to_thread(_otlp)
    async with otlp.OtlpSpans(settings, role, node) as spans:
        yield spans


def _otlp() -> ModuleType:
    try:
        return import_module("fedsea_mq.telemetry.otlp")
    except ImportError as error:
        raise ConfigError(
            "telemetry.otlp_endpoint needs OpenTelemetry: install fedsea_mq with the extra otel"
        ) from error
