"""A training client's metrics, from the events that it tells anyway."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from fedsea_mq.telemetry import measures
from fedsea_mq.telemetry.measures import Reading
from fedsea_mq.telemetry.node_metrics import NodeMetrics
from fedsea_mq.transport.frame_counts import Direction, FrameCounts, frame_readings
from fedsea_mq.transport.requests import Requests
from nodes.trainer.events import AttemptFailed, Event, Finished, RoundDone, SessionsLost, StepDone


class TrainerMetrics:
    """What a member of a run shows; `registry` is what `MetricsEndpoint` serves."""

    def __init__(self, member: str) -> None:
        metrics = NodeMetrics("trainer", member)
        self.registry = metrics.registry
        self.frames = FrameCounts(Direction.UP)
        self._requests: Requests | None = None
        self._step_seconds = metrics.histogram(measures.TRAINING_STEP_SECONDS)
        self._rounds = self._steps = self._samples = self._repeats = self._failovers = 0
        self._loss: float | None = None
        self._validation_loss: float | None = None
        self._updates: Counter[str] = Counter()
        metrics.read(self._readings)

    def watch(self, requests: Requests) -> None:
        """The client runs, with these."""
        self._requests = requests

    def note(self, event: Event) -> None:
        """An event of the run."""
        match event:
            case StepDone():
                self._steps += 1
                self._samples += event.samples
                self._loss = event.loss
                self._step_seconds(event.seconds)
            case RoundDone():
                self._rounds = event.round + 1
                self._validation_loss = event.validation_loss
                self._updates[event.fate.value] += 1
            case AttemptFailed():
                self._repeats += 1
            case SessionsLost():
                self._failovers += 1
            case Finished():
                self._rounds = event.rounds

    def _readings(self) -> Iterable[Reading]:
        yield measures.TRAINING_ROUND.of(self._rounds)
        yield measures.TRAINING_STEPS.of(self._steps)
        yield measures.TRAINING_SAMPLES.of(self._samples)
        yield measures.TRAINING_REPEATS.of(self._repeats)
        yield measures.FAILOVERS.of(self._failovers)
        yield from (measures.TRAINING_UPDATES.of(n, fate) for fate, n in self._updates.items())
        if self._loss is not None:
            yield measures.TRAINING_LOSS.of(self._loss)
        if self._validation_loss is not None:
            yield measures.TRAINING_VALIDATION_LOSS.of(self._validation_loss)
        yield from frame_readings(self.frames)
        if self._requests is not None:
            yield measures.RETRIES.of(self._requests.retries)
            yield measures.BUSY.of(self._requests.refusals)
