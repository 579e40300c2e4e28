"""A load process's metrics: what its simulated clients meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from fedsea_mq.load.plan import Request
from fedsea_mq.load.tally import Outcome as LoadOutcome
from fedsea_mq.load.tally import RequestWatch
from fedsea_mq.telemetry import measures
from fedsea_mq.telemetry.measures import Reading
from fedsea_mq.telemetry.node_metrics import NodeMetrics
from fedsea_mq.transport.frame_counts import Direction
from nodes.client.metrics import Outcome, RequestMetrics
from nodes.load.driver import Driver

_OUTCOMES: Final[Mapping[str, Outcome]] = {
    LoadOutcome.DONE: Outcome.DONE,
    LoadOutcome.STOPPED: Outcome.STOPPED,
    LoadOutcome.VANISHED: Outcome.STOPPED,
}


class LoadMetrics:
    """What a load process shows; `registry` is what `MetricsEndpoint` serves."""

    def __init__(self) -> None:
        metrics = NodeMetrics("load", "load")
        self.registry = metrics.registry
        self._requests = RequestMetrics(metrics)
        self._driver: Driver | None = None
        metrics.read(self._readings)

    def watch(self, driver: Driver) -> None:
        """The plan is run by this."""
        self._driver = driver
        driver.on_end = self._ended

    def _ended(self, request: Request, watch: RequestWatch, outcome: LoadOutcome | str) -> None:
        counters = self._requests.counters
        counters.prompt_tokens += request.prompt_tokens
        counters.new_tokens += watch.tokens
        how = _OUTCOMES.get(outcome, Outcome.FAILED)
        self._requests.ended(how, watch.ttft_s, watch.tpot_s)

    def _readings(self) -> Iterable[Reading]:
        if self._driver is None:
            return
        traffic = self._driver.traffic()
        yield measures.SESSIONS.of(self._driver.in_flight)
        yield measures.BYTES.of(traffic.bytes_up, Direction.UP)
        yield measures.BYTES.of(traffic.bytes_down, Direction.DOWN)
        yield measures.BUSY.of(traffic.refusals)
        yield measures.UNSENT.of(self._driver.tally.unsent)
