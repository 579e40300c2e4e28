"""What a trunk says of its sessions: log lines by their trace, and spans with their steps."""

from __future__ import annotations

from fedsea_mq.log import get_logger
from fedsea_mq.serving.session_events import SessionClosed, SessionEvent, SessionOpened
from fedsea_mq.serving.trunk_sessions import Compute
from fedsea_mq.telemetry.spans import Span, Spans
from fedsea_mq.telemetry.trace import TraceContext, trace_fields

_log = get_logger(__name__)


class SessionWatch:
    """Told of each event, and of what was computed or was not. What is usual is debug output."""

    def __init__(self, node: str, spans: Spans) -> None:
        self._node = node
        self._spans = spans
        # Of the sessions that are open and have a trace.
        self._open: dict[bytes, Span] = {}

    def __call__(self, event: SessionEvent) -> None:
        """A session was opened, or is over."""
        fields = trace_fields(event.trace)
        match event:
            case SessionOpened(session, trace, positions):
                _log.debug("session opened", node=self._node, positions=positions, **fields)
                if trace is not None:
                    of = TraceContext.from_wire(trace)
                    self._open[session] = self._spans.part("trunk session", of)
            case SessionClosed(session, _, expired):
                log = _log.info if expired else _log.debug
                log("session closed", node=self._node, expired=expired, **fields)
                self._end(session, "lease ran out" if expired else None)

    def computed(self, work: Compute, seconds: float) -> None:
        """Positions were computed, so long after their frame came."""
        span = self._open.get(work.envelope.session)
        if span is not None:
            body = work.body
            span.event("step", cached=body.cached, positions=body.count, seconds=seconds)

    def failed(self, work: Compute, error: str) -> None:
        """Positions were not computed; `error` names the class of what went wrong."""
        _log.error("step failed", node=self._node, error=error, **trace_fields(work.trace))
        span = self._open.get(work.envelope.session)
        if span is not None:
            span.event("step failed", error=error)

    def leave(self) -> None:
        """The node ends, and with it its sessions."""
        for session in list(self._open):
            self._end(session, "the node ended")

    def _end(self, session: bytes, error: str | None) -> None:
        span = self._open.pop(session, None)
        if span is not None:
            span.end(error)
