"""What a client says of its requests: a log line and a span by their trace, and metrics."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from fedsea_mq.log import get_logger
from fedsea_mq.telemetry.spans import Fact, Span, Spans
from fedsea_mq.telemetry.trace import Entropy, RequestTrace
from nodes.client.metrics import Outcome, RequestMetrics

if TYPE_CHECKING:
    from nodes.client.generation import GenerationStats

_log = get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RequestWatch:
    """One request, by its trace. `entropy` is where ids come from."""

    trace: RequestTrace
    entropy: Entropy
    spans: Spans
    metrics: RequestMetrics

    @property
    def trace_id(self) -> str:
        """As log lines have it."""
        return self.trace.own.trace_id.hex()

    def below(self) -> RequestWatch:
        """A request that is part of this one."""
        return replace(self, trace=self.trace.below(self.entropy))

    def begin(self, name: str) -> Span:
        """The span of the request."""
        return self.spans.request(name, self.trace)

    async def watching(
        self, stats: GenerationStats, tokens: AsyncGenerator[T]
    ) -> AsyncGenerator[T]:
        """The same tokens; what became of them is noted once they end, however they do."""
        span = self.begin("request")
        outcome, error = Outcome.STOPPED, None
        try:
            async with aclosing(tokens):
                async for token in tokens:
                    if stats.new_tokens == 1:
                        span.event("first token")
                    yield token
            outcome = Outcome.DONE
        except Exception as raised:
            outcome, error = Outcome.FAILED, type(raised).__name__
            raise
        finally:
            facts = _facts(stats)
            span.end(error, outcome=outcome.value, **facts)
            _count(self.metrics, outcome, stats)
            said = facts if error is None else {**facts, "error": error}
            _log.debug("request ended", outcome=outcome.value, trace_id=self.trace_id, **said)


def _count(metrics: RequestMetrics, outcome: Outcome, stats: GenerationStats) -> None:
    counters = metrics.counters
    counters.prompt_tokens += stats.prompt_tokens
    counters.new_tokens += stats.new_tokens
    counters.drafted += stats.drafted
    counters.accepted += stats.accepted
    metrics.ended(
        outcome,
        stats.ttft_ms / 1000 if stats.new_tokens else None,
        stats.tpot_ms / 1000 if stats.new_tokens > 1 else None,
    )


def _facts(stats: GenerationStats) -> dict[str, Fact]:
    return {
        "prompt_tokens": stats.prompt_tokens,
        "new_tokens": stats.new_tokens,
        "ttft_ms": round(stats.ttft_ms, 2),
        "tpot_ms": round(stats.tpot_ms, 2),
        "recoveries": stats.recoveries,
        "node": stats.node,
    }
