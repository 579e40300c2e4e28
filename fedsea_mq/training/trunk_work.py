"""What the rules of training ask a trunk to compute, and what comes of it. Pure.

One piece of work is under way at a time; each belongs to an attempt, of which nothing counts once
it is over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedsea_mq.protocol.payload import PayloadSpec


@dataclass(frozen=True, slots=True)
class Piece:
    """One member's batch of whole sequences, as it came: the part of a joint pass."""

    member: str
    adapter: str
    micro: int
    lengths: tuple[int, ...]
    spec: PayloadSpec
    payload: Sequence[bytes]

    @property
    def positions(self) -> int:
        """Of all its sequences."""
        return sum(self.lengths)


@dataclass(frozen=True, slots=True)
class GradientPiece:
    """One member's gradient of a joint pass, as it came, divided by `2 ** exponent`."""

    exponent: int
    payload: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Restore:
    """Go back to the newest state of no later round, and hold these adapters at least."""

    attempt: bytes
    round: int
    adapters: Sequence[str]


@dataclass(frozen=True, slots=True)
class RunForward:
    """Run the pieces in one pass, which waits for its gradient as `number` if it trains."""

    attempt: bytes
    number: int
    pieces: Sequence[Piece]
    trains: bool


@dataclass(frozen=True, slots=True)
class RunBackward:
    """Take the gradients of pass `number` back; those of members that are missing are zero.

    With `averages` the loss is the mean of the members' that answered. So what comes in is divided
    by their number, and what goes out multiplied.
    """

    attempt: bytes
    number: int
    pieces: Sequence[Piece]
    gradients: Mapping[str, GradientPiece]
    averages: bool


@dataclass(frozen=True, slots=True)
class TakeStep:
    """Step an adapter; `squared_norms` are those of the other parts' gradients, one a member."""

    attempt: bytes
    adapter: str
    squared_norms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class DropPasses:
    """Let go of passes whose gradients will not come."""

    attempt: bytes
    numbers: Sequence[int]


@dataclass(frozen=True, slots=True)
class Save:
    """The round is over: average adapters by these weights, if any, and save as before `round`."""

    attempt: bytes
    round: int
    weights: Mapping[str, float]


Work = Restore | RunForward | RunBackward | TakeStep | DropPasses | Save


@dataclass(frozen=True, slots=True)
class Answer:
    """What one member is sent of a pass; `squared_norm` is of its adapter's gradients so far."""

    payload: Sequence[bytes]
    exponent: int = 0
    squared_norm: float = 0.0


@dataclass(frozen=True, slots=True)
class NotFinite:
    """Nothing was computed: these members sent numbers that are not finite."""

    members: frozenset[str]


# Answers by member, of a pass; empty of other work. An exception: it failed.
Outcome = Mapping[str, Answer] | NotFinite | Exception
