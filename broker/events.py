"""What the broker tells whoever watches its sessions: one record an event, with its trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionPlaced:
    """A session was sent to a node, so long after its client asked for that."""

    trace: bytes | None
    node: str
    waited_s: float


@dataclass(frozen=True, slots=True)
class SessionRefused:
    """A session was not placed; `error` names the class of the reason."""

    trace: bytes | None
    error: str
    waited_s: float


@dataclass(frozen=True, slots=True)
class SessionOver:
    """A session is over, by its client's or node's word; with an `error`, by the broker's.

    A session of before the broker was started has no trace.
    """

    trace: bytes | None
    error: str | None = None


SessionEvent = SessionPlaced | SessionRefused | SessionOver
OnEvent = Callable[[SessionEvent], None]


def unwatched(_: SessionEvent) -> None:
    """Nobody watches."""
