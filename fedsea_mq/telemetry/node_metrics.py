"""The metrics of one node: a registry of its own, read when Prometheus asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from fedsea_mq import __version__
from fedsea_mq.protocol.envelope import PROTOCOL_VERSION
from fedsea_mq.telemetry import measures
from fedsea_mq.telemetry.distribution import Distribution
from fedsea_mq.telemetry.measures import Kind, Measure, Reading

Source = Callable[[], Iterable[Reading]]
_OWN_LABELS: Final = ("role", "node")


class NodeMetrics(Collector):
    """What a node counts anyway is read by `sources`; only distributions are kept here.

    `registry` is what `MetricsEndpoint` serves. Sources are called where it is read, which is on
    the node's event loop.
    """

    def __init__(self, role: str, node: str) -> None:
        self._own = (role, node)
        self._sources: list[Source] = [_build_info]
        self._distributions: dict[Measure, Distribution] = {}
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(self)

    def read(self, source: Source) -> None:
        """Have a source asked for its readings at each scrape."""
        self._sources.append(source)

    def histogram(self, measure: Measure) -> Callable[[float], None]:
        """What to call with each value of a distribution, always from the same thread."""
        made = self._distributions[measure] = Distribution(measure.buckets)
        return made.observe

    def collect(self) -> Iterable[Metric]:
        """All readings and distributions now, as families that the client library writes out."""
        by_measure: dict[Measure, list[Reading]] = {}
        for source in self._sources:
            for reading in source():
                by_measure.setdefault(reading.measure, []).append(reading)
        yield from (self._family(*item) for item in by_measure.items())
        yield from (self._histogram(*item) for item in self._distributions.items())

    def _histogram(self, measure: Measure, values: Distribution) -> Metric:
        made = HistogramMetricFamily(measure.name, measure.help, labels=_OWN_LABELS)
        made.add_metric(self._own, values.cumulative(), values.sum)
        return made

    def _family(self, measure: Measure, readings: Sequence[Reading]) -> Metric:
        family = CounterMetricFamily if measure.kind is Kind.COUNTER else GaugeMetricFamily
        made = family(measure.name, measure.help, labels=[*_OWN_LABELS, *measure.labels])
        for reading in readings:
            made.add_metric([*self._own, *reading.labels], reading.value)
        return made


def _build_info() -> Iterable[Reading]:
    return [measures.BUILD_INFO.of(1, __version__, str(PROTOCOL_VERSION))]
