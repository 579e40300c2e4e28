"""What the core wants done, in the order in which it is wanted.

Each says which call of `core.Aggregation` its result comes back by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedsea_mq.protocol.envelope import Envelope
from fedsea_mq.protocol.frames import Parts
from fedsea_mq.protocol.training_messages import BeginRound, EndRound, Update
from fedsea_mq.training.aggregation.reports import RunEvent
from fedsea_mq.training.rounds import Progress
from fedsea_mq.training.secure_aggregation.messages import MaskedUpdate
from fedsea_mq.training.secure_aggregation.server import SecureServer


@dataclass(frozen=True, slots=True)
class Reply:
    """Send these parts to the broker."""

    parts: Parts


@dataclass(frozen=True, slots=True)
class Report:
    """Tell whoever watches."""

    event: RunEvent


@dataclass(frozen=True, slots=True)
class CheckUpdate:
    """See whether an update is of finite numbers, and clip it: `checked`."""

    envelope: Envelope
    member: str
    body: Update
    payload: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Checked:
    """What comes of `CheckUpdate`: the clipped update, which the core only hands on."""

    update: Any
    norm: float
    clipped: bool


@dataclass(frozen=True, slots=True)
class AddUpdate:
    """Add a checked update to the sum of this attempt; nothing comes back."""

    attempt: bytes
    update: Any
    weight: int


@dataclass(frozen=True, slots=True)
class AddMasked:
    """Let the server `receive` a masked vector: `masked`. Nobody else touches it meanwhile."""

    envelope: Envelope
    attempt: bytes
    server: SecureServer
    number: int
    message: MaskedUpdate
    vector: bytes


@dataclass(frozen=True, slots=True)
class Average:
    """Make the next shared adapters of this attempt's sum, or of the server's: `averaged`."""

    attempt: bytes
    server: SecureServer | None


@dataclass(frozen=True, slots=True)
class Averaged:
    """What comes of `Average`: the next adapters as a vector, and who is in a secure sum."""

    vector: bytes
    survivors: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class BeginRoundAtTrunk:
    """Tell the trunk, in place of what it is being told: `trunk_began` or `trunk_failed`."""

    body: BeginRound


@dataclass(frozen=True, slots=True)
class EndRoundAtTrunk:
    """Tell the trunk: `trunk_ended` or `trunk_failed`."""

    body: EndRound


@dataclass(frozen=True, slots=True)
class Save:
    """Take the adapters of this attempt, if one is named, and save them: `saved`.

    `progress.done` is the number of the state. With `last`, what the run is for is written, too.
    """

    attempt: bytes | None
    progress: Progress
    last: bool


Action = (
    Reply
    | Report
    | CheckUpdate
    | AddUpdate
    | AddMasked
    | Average
    | BeginRoundAtTrunk
    | EndRoundAtTrunk
    | Save
)
