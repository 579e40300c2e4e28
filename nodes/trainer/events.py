"""What a training client tells as it goes: numbers and names, never text or ids."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from fedsea_mq.protocol.training_messages import Fate


@dataclass(frozen=True, slots=True)
class StepDone:
    """An optimiser step. `loss` is the mean over its answer tokens in nats, before the step.

    `step` counts from 0 in its round, `steps` all that the adapters have behind them. Bytes are
    those on the wire of this step's frames, in frames sent again too. `norm` is that of the
    gradients over head, trunk and tail before clipping.
    """

    name: ClassVar = "step"
    round: int
    step: int
    steps: int
    loss: float
    norm: float
    samples: int
    seconds: float
    samples_per_s: float
    bytes_up: int
    bytes_down: int
    sigma: float


@dataclass(frozen=True, slots=True)
class RoundDone:
    """The member's part in a round is done, and its update with the aggregator, or masked there.

    `loss` is the mean over the steps, `validation_loss` the mean over the answer tokens held out,
    with the member's own adapters as they are before averaging. `update_norm` is that before it
    was `clipped`; `fate` what became of the update.
    """

    name: ClassVar = "round"
    round: int
    loss: float
    validation_loss: float | None
    samples: int
    seconds: float
    samples_per_s: float
    bytes_up: int
    bytes_down: int
    update_norm: float
    clipped: bool
    fate: Fate
    sigma: float


@dataclass(frozen=True, slots=True)
class Masked:
    """The member's masked update of a round was sent, and its share of the unmasking."""

    name: ClassVar = "masked"
    round: int


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """An attempt at a round came to nothing for this member; `reason` names the error."""

    name: ClassVar = "attempt_failed"
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class SessionsLost:
    """Trunk or aggregator is gone: the member enlists again."""

    name: ClassVar = "sessions_lost"
    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is over; the member's adapters lie in `folder`, in peft's format."""

    name: ClassVar = "finished"
    rounds: int
    folder: str


Event = StepDone | RoundDone | Masked | AttemptFailed | SessionsLost | Finished


def as_line(event: Event) -> dict[str, Any]:
    """An event as the fields of a JSON line."""
    return {"event": event.name, **asdict(event)}
