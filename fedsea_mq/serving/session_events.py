"""What a trunk's session rules tell whoever watches: one record an event, with its trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """A session was accepted."""

    session: bytes
    trace: bytes | None
    positions: int


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """A session is over; with `expired`, as nobody was heard for so long."""

    session: bytes
    trace: bytes | None
    expired: bool


SessionEvent = SessionOpened | SessionClosed
OnEvent = Callable[[SessionEvent], None]


def unwatched(_: SessionEvent) -> None:
    """Nobody watches."""
