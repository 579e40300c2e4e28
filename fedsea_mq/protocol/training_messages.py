"""The bodies of training: a client with the trunk, the aggregator with the trunk and its clients.

Tensors travel in the payload: states and gradients as a session's wire dtype says, adapters as one
fp32 vector in the order of `training.adapter_layout`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from fedsea_mq.protocol.bounded import (
    BODY,
    MAX_POSITIONS,
    ClientId,
    Count,
    Digest,
    Name,
    Pause,
    PublicKeyBytes,
    Rate,
    Role,
)
from fedsea_mq.protocol.payload import WireDtype

MAX_SEQUENCES: Final = 1024
MAX_MEMBERS: Final = 1024
MAX_MICROS: Final = 1024
ATTEMPT_BYTES: Final = 16

Length = Annotated[int, Field(strict=True, ge=1, le=MAX_POSITIONS)]
Micro = Annotated[int, Field(strict=True, ge=0, lt=MAX_MICROS)]
Flag = Annotated[bool, Field(strict=True)]
# The power of two that a gradient was divided by, so that it fits a narrow dtype.
Exponent = Annotated[int, Field(strict=True, ge=-256, le=256)]
# One attempt at one round: random, drawn by the aggregator, so that none is taken for another.
Attempt = Annotated[bytes, Field(strict=True, min_length=ATTEMPT_BYTES, max_length=ATTEMPT_BYTES)]


def _distinct(members: list[str]) -> list[str]:
    if len(set(members)) < len(members):
        raise ValueError("a member twice")
    return members


Members = Annotated[
    list[Name], Field(min_length=1, max_length=MAX_MEMBERS), AfterValidator(_distinct)
]


@dataclass(frozen=True, slots=True, config=BODY)
class Enlist:
    """A party asks for a training session with the trunk or the aggregator of a run.

    `agreed` digests the settings that all parties of a run must share. `member` is the client's
    name in the run, the same after a restart; None is the aggregator's own session with the trunk.
    `client` is set by the broker, `seal` is the party's ephemeral key: both as in `Open`.
    """

    role: Role
    run: Name
    fingerprint: Digest
    agreed: Digest
    dtype: WireDtype
    member: Name | None
    client: ClientId = b""
    seal: PublicKeyBytes | None = None


@dataclass(frozen=True, slots=True, config=BODY)
class Forward:
    """Run a packed batch of whole sequences, whose states are the payload, through the trunk.

    `step` counts the optimiser steps of the round, `micro` the batches of one step. With `trains`
    a `Backward` follows; without, the pass is for evaluation: no dropout, nothing is kept.
    """

    attempt: Attempt
    step: Count
    micro: Micro
    trains: Flag
    lengths: Annotated[list[Length], Field(min_length=1, max_length=MAX_SEQUENCES)]


@dataclass(frozen=True, slots=True, config=BODY)
class Outputs:
    """The payload holds the trunk's outputs of all positions."""

    step: Count
    micro: Micro


@dataclass(frozen=True, slots=True, config=BODY)
class Backward:
    """The payload holds the loss's gradient by the outputs, divided by `2 ** exponent`."""

    attempt: Attempt
    step: Count
    micro: Micro
    exponent: Exponent


@dataclass(frozen=True, slots=True, config=BODY)
class Gradient:
    """The payload holds the loss's gradient by the states, divided by `2 ** exponent`.

    `squared_norm` is that of the trunk's gradients so far in this step; the client clips by the
    norm over head, trunk and tail.
    """

    step: Count
    micro: Micro
    exponent: Exponent
    squared_norm: Rate


@dataclass(frozen=True, slots=True, config=BODY)
class Step:
    """Take the optimiser step; `squared_norm` is that of the head's and tail's gradients."""

    attempt: Attempt
    step: Count
    squared_norm: Rate


@dataclass(frozen=True, slots=True, config=BODY)
class Stepped:
    """Optimiser steps taken in this round for this member."""

    steps: Count


@dataclass(frozen=True, slots=True, config=BODY)
class BeginRound:
    """The aggregator begins an attempt at a round: the trunk goes back to where the round begins.

    `members` take part, in this order where they take turns, with `local_steps` steps each.
    """

    round: Count
    attempt: Attempt
    local_steps: Annotated[int, Field(strict=True, ge=1, le=2**31)]
    members: Members


@dataclass(frozen=True, slots=True, config=BODY)
class EndRound:
    """The round is over: average the adapters of `counted`, and save."""

    round: Count
    attempt: Attempt
    counted: Members


@dataclass(frozen=True, slots=True, config=BODY)
class RoundState:
    """The trunk has done what was asked: it stands before this round, and has saved that."""

    round: Count
    attempt: Attempt


@dataclass(frozen=True, slots=True, config=BODY)
class Ask:
    """What is there to do? With `failed`, the attempt that the client could not go on with.

    `samples` is how many examples the client trains on.
    """

    samples: Annotated[int, Field(strict=True, ge=1, le=1 << 20)]
    failed: Attempt | None = None


class Duty(StrEnum):
    """What a client is to do now."""

    WAIT = "wait"
    TRAIN = "train"
    MASK = "mask"
    FINISH = "finish"
    GIVE_UP = "give_up"


@dataclass(frozen=True, slots=True, config=BODY)
class Task:
    """What to do now. `WAIT`: ask again after `again_ms`, at the latest.

    `TRAIN` and `FINISH` bring the shared adapters before round `round` in the payload; with
    `FINISH`, `attempt` is the one that they came out of. `MASK` brings the terms of a secure
    aggregation, in which this client is member number `number`.
    """

    duty: Duty
    round: Count = 0
    attempt: Attempt = bytes(ATTEMPT_BYTES)
    local_steps: Count = 0
    number: Count = 0
    again_ms: Pause = 1000


@dataclass(frozen=True, slots=True, config=BODY)
class Update:
    """A client's local steps are done; `weight` samples, mean training loss in nats.

    The payload holds what they added to the shared adapters, clipped to the agreed norm; nothing
    where it will be masked (then `weight` is 0).
    """

    attempt: Attempt
    weight: Annotated[int, Field(strict=True, ge=0, le=1 << 20)]
    loss: Annotated[float, Field(strict=True, ge=0.0, le=1e6)]


class Fate(StrEnum):
    """What became of an update."""

    COUNTED = "counted"
    DUPLICATE = "duplicate"
    LATE = "late"


@dataclass(frozen=True, slots=True, config=BODY)
class Updated:
    """What became of an update; all that is refused otherwise is an error."""

    fate: Fate


@dataclass(frozen=True, slots=True, config=BODY)
class Secure:
    """A message of secure aggregation; the payload holds it, and the masked vector if any."""

    attempt: Attempt


@dataclass(frozen=True, slots=True, config=BODY)
class Secured:
    """What the aggregator says next in it, in the payload; nothing after the last."""

    attempt: Attempt
