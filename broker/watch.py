"""What the broker says of sessions as they come and go: log lines, and spans of their placement."""

from __future__ import annotations

from broker.events import SessionEvent, SessionOver, SessionPlaced, SessionRefused
from fedsea_mq.log import get_logger
from fedsea_mq.telemetry.spans import Fact, Spans
from fedsea_mq.telemetry.trace import TraceContext, trace_fields

_log = get_logger(__name__)


class SessionWatch:
    """Told of each event. What is usual is for the debug log, so that it costs nothing else."""

    def __init__(self, spans: Spans) -> None:
        self._spans = spans

    def __call__(self, event: SessionEvent) -> None:
        """Note an event."""
        fields = trace_fields(event.trace)
        match event:
            case SessionPlaced(trace, node, waited_s):
                _log.debug("session placed", node=node, waited_s=round(waited_s, 4), **fields)
                self._placing(trace, waited_s, node=node)
            case SessionRefused(trace, error, waited_s):
                _log.debug("session refused", error=error, **fields)
                self._placing(trace, waited_s, error)
            case SessionOver(_, None):
                _log.debug("session over", **fields)
            case SessionOver(_, error):
                _log.info("session ended by the broker", error=error, **fields)

    def _placing(
        self, trace: bytes | None, waited_s: float, error: str | None = None, **facts: Fact
    ) -> None:
        if trace is not None:
            span = self._spans.part("place session", TraceContext.from_wire(trace), waited_s)
            span.end(error, **facts)
