"""An aggregator's metrics, from the events that it tells anyway."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from fedsea_mq.telemetry import measures
from fedsea_mq.telemetry.measures import Reading
from fedsea_mq.telemetry.node_metrics import NodeMetrics
from fedsea_mq.training.aggregation.reports import (
    MemberJoined,
    MemberLeft,
    RoundClosed,
    RoundDone,
    RoundRepeated,
    RunEvent,
    UpdateCounted,
    UpdateTurnedAway,
)
from fedsea_mq.transport.frame_counts import Direction, FrameCounts, frame_readings


class AggregatorMetrics:
    """What an aggregator shows; `registry` is what `MetricsEndpoint` serves."""

    def __init__(self, node: str) -> None:
        metrics = NodeMetrics("aggregator", node)
        self.registry = metrics.registry
        # With its members, to whom it is a node, and with the trunk, whose client it is.
        self.with_members = FrameCounts(Direction.DOWN)
        self.with_trunk = FrameCounts(Direction.UP)
        self._rounds = self._repeats = 0
        self._members: set[str] = set()
        self._loss: float | None = None
        self._updates = Counter(counted=0, refused=0)
        metrics.read(self._readings)

    def resumed(self, rounds: int) -> None:
        """The run goes on after so many rounds."""
        self._rounds = rounds

    def note(self, event: RunEvent) -> None:
        """An event of the run."""
        match event:
            case MemberJoined():
                self._members.add(event.member)
            case MemberLeft():
                self._members.discard(event.member)
            case UpdateCounted():
                self._updates["counted"] += 1
            case UpdateTurnedAway():
                self._updates["refused"] += 1
            case RoundClosed():
                self._loss = event.loss
            case RoundDone():
                self._rounds = event.round + 1
            case RoundRepeated():
                self._repeats += 1

    def _readings(self) -> Iterable[Reading]:
        yield measures.TRAINING_ROUND.of(self._rounds)
        yield measures.TRAINING_MEMBERS.of(len(self._members))
        yield measures.TRAINING_REPEATS.of(self._repeats)
        yield from (measures.TRAINING_UPDATES.of(n, fate) for fate, n in self._updates.items())
        if self._loss is not None:
            yield measures.TRAINING_LOSS.of(self._loss)
        yield from frame_readings(self.with_members, self.with_trunk)
