"""A client node's metrics: what its requests were like, and what it counts anyway."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from fedsea_mq.serving.batcher import Batcher
from fedsea_mq.serving.step_metrics import StepMetrics, batcher_readings
from fedsea_mq.telemetry import measures
from fedsea_mq.telemetry.measures import Reading
from fedsea_mq.telemetry.node_metrics import NodeMetrics
from fedsea_mq.transport.frame_counts import frame_readings
from fedsea_mq.transport.requests import Requests
from nodes.session_wires import SessionCounts


class Outcome(StrEnum):
    """How a request ended."""

    DONE = "done"
    STOPPED = "stopped"
    """Whoever asked wanted no more."""
    FAILED = "failed"


@dataclass(slots=True)
class RequestCounters:
    """Totals of the requests that ended."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    prompt_tokens: int = 0
    new_tokens: int = 0
    drafted: int = 0
    accepted: int = 0

    def readings(self) -> Iterable[Reading]:
        """All of them; an outcome that did not come about is 0."""
        yield from (measures.REQUESTS.of(self.outcomes[one], one) for one in Outcome)
        yield measures.TOKENS.of(self.prompt_tokens, "prompt")
        yield measures.TOKENS.of(self.new_tokens, "new")
        yield measures.DRAFTS.of(self.accepted, "accepted")
        yield measures.DRAFTS.of(self.drafted - self.accepted, "rejected")


class RequestMetrics:
    """Requests by how they ended and how long they took."""

    def __init__(self, metrics: NodeMetrics) -> None:
        self.counters = RequestCounters()
        self._ttft = metrics.histogram(measures.TTFT)
        self._tpot = metrics.histogram(measures.TPOT)
        metrics.read(self.counters.readings)

    def ended(self, outcome: Outcome, ttft_s: float | None, tpot_s: float | None) -> None:
        """A request is over; the times are None where there were not so many tokens."""
        self.counters.outcomes[outcome] += 1
        if ttft_s is not None:
            self._ttft(ttft_s)
        if tpot_s is not None:
            self._tpot(tpot_s)


class ClientMetrics:
    """All that a client node shows; `registry` is what `MetricsEndpoint` serves."""

    def __init__(self) -> None:
        metrics = NodeMetrics("client", "client")
        self.registry = metrics.registry
        self.requests = RequestMetrics(metrics)
        self.counts = SessionCounts()
        self._steps = StepMetrics(metrics)
        self._watched: tuple[Batcher, Requests] | None = None
        metrics.read(self._readings)

    def watch(self, batcher: Batcher, requests: Requests) -> None:
        """The node runs, with these."""
        self._steps.watch(batcher)
        self._watched = batcher, requests

    def _readings(self) -> Iterable[Reading]:
        yield measures.SESSIONS.of(self.counts.open)
        yield measures.FAILOVERS.of(self.counts.failovers)
        yield from frame_readings(self.counts.frames)
        if self._watched is not None:
            batcher, requests = self._watched
            yield from batcher_readings(batcher)
            yield measures.RETRIES.of(requests.retries)
            yield measures.BUSY.of(requests.refusals)
