"""What the aggregator tells whoever watches a run: one record an event, one JSON line a record."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class MemberJoined:
    """A client asked what there is to do, for the first time in its session."""

    member: str
    samples: int


@dataclass(frozen=True, slots=True)
class MemberLeft:
    """A client's session is over."""

    member: str


@dataclass(frozen=True, slots=True)
class RoundBegun:
    """The trunk stands before the round; its members may train."""

    round: int
    attempt: int
    members: tuple[str, ...]
    local_steps: int


@dataclass(frozen=True, slots=True)
class UpdateCounted:
    """An update counts. `norm` is the one that it came with, None where it is masked.

    With `clipped` it was scaled down to the agreed norm.
    """

    round: int
    attempt: int
    member: str
    weight: int
    loss: float
    norm: float | None
    clipped: bool


@dataclass(frozen=True, slots=True)
class UpdateTurnedAway:
    """An update does not count: not of the agreed size, or not of finite numbers."""

    round: int
    attempt: int
    member: str
    reason: str


@dataclass(frozen=True, slots=True)
class RoundClosed:
    """No more updates count; `loss` is their mean, weighted by samples, in nats."""

    round: int
    attempt: int
    loss: float
    counted: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RoundDone:
    """The trunk and the shared adapters have taken the round in; `counted` are in the mean."""

    round: int
    attempt: int
    counted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RoundRepeated:
    """The attempt came to nothing; another follows."""

    round: int
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class RunFinished:
    """All rounds are done, and the adapters are written."""

    rounds: int


@dataclass(frozen=True, slots=True)
class RunGivenUp:
    """The last attempt of a round came to nothing as well."""

    round: int
    attempt: int
    reason: str


RunEvent = (
    MemberJoined
    | MemberLeft
    | RoundBegun
    | UpdateCounted
    | UpdateTurnedAway
    | RoundClosed
    | RoundDone
    | RoundRepeated
    | RunFinished
    | RunGivenUp
)


def event_fields(event: RunEvent) -> dict[str, Any]:
    """An event as the fields of a JSON line: `event` names it, as in `round_begun`."""
    name = re.sub(r"(?<!^)([A-Z])", r"_\1", type(event).__name__).lower()
    return {"event": name, **asdict(event)}
