"""What a batcher's steps were like, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from fedsea_mq.serving.batcher import Batcher, StepTaken
from fedsea_mq.telemetry import measures
from fedsea_mq.telemetry.measures import Reading
from fedsea_mq.telemetry.node_metrics import NodeMetrics


class StepMetrics:
    """The distributions of a node's steps; it may watch one batcher after another."""

    def __init__(self, metrics: NodeMetrics) -> None:
        self._seconds = metrics.histogram(measures.STEP_SECONDS)
        self._positions = metrics.histogram(measures.BATCH_POSITIONS)
        self._sessions = metrics.histogram(measures.BATCH_SESSIONS)
        self._wait = metrics.histogram(measures.QUEUE_WAIT)

    def watch(self, batcher: Batcher) -> None:
        """Be told of its steps from now on."""
        batcher.on_step = self._note

    def _note(self, step: StepTaken) -> None:
        self._seconds(step.seconds)
        self._positions(step.positions)
        self._sessions(step.sessions)
        for wait_s in step.waits_s:
            self._wait(wait_s)


def batcher_readings(batcher: Batcher) -> Iterable[Reading]:
    """What a batcher counts itself."""
    yield measures.QUEUE_DEPTH.of(batcher.waiting)
    yield measures.COMPUTE_SECONDS.of(batcher.stats.busy_s)
    yield measures.HELD_BACK.of(batcher.stats.waited_s)
