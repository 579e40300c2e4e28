"""What one client may have and send. Pure.

A client is whom fairness is between: a key or, where there are no keys, a connection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fedsea_mq.errors import Busy, LimitExceeded

# What a client may send in one go is what it may send in this time.
_BURST_S: Final = 2.0
# How soon to ask again for a session, where only the end of another makes room.
_HELD_RETRY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Of each client; none where it is None."""

    sessions: int | None = None
    positions: int | None = None
    frames_per_s: float | None = None
    bytes_per_s: float | None = None


NO_LIMITS: Final = Limits()


@dataclass(slots=True)
class Held:
    """What the sessions of one client take."""

    sessions: int = 0
    positions: int = 0


def check_room(limits: Limits, held: Held, positions: int) -> None:
    """Whether a client may open one session more.

    Raises:
        LimitExceeded: it asks for more positions than it may ever have.
        Busy: its other sessions leave no room for this one.
    """
    if limits.positions is not None and positions > limits.positions:
        raise LimitExceeded(
            f"{positions} positions asked for, a client may have {limits.positions}"
        )
    if limits.sessions is not None and held.sessions >= limits.sessions:
        raise Busy(f"a client may hold {limits.sessions} sessions", _HELD_RETRY_S)
    if limits.positions is not None and held.positions + positions > limits.positions:
        raise Busy(f"a client may hold {limits.positions} positions", _HELD_RETRY_S)


class Meters:
    """How fast each client sends: buckets that fill with time, of what is two seconds' worth."""

    def __init__(self, limits: Limits) -> None:
        costs: list[tuple[float | None, Callable[[int], float]]] = [
            (limits.frames_per_s, _one),
            (limits.bytes_per_s, float),
        ]
        # Each rate, and what a frame of so many bytes costs of it.
        self._rates = [(rate, cost) for rate, cost in costs if rate is not None]
        # When each client's buckets will be full again.
        self._full_at: dict[bytes, list[float]] = {}

    @property
    def limit_anybody(self) -> bool:
        """Whether there is anything to meter."""
        return bool(self._rates)

    def take(self, client: bytes, size: int, now: float) -> None:
        """Count a frame of so many bytes. Raises `Busy`: it came too soon, and does not count."""
        full_at = self._full_at.setdefault(client, [now] * len(self._rates))
        wait = max(full_at) - now - _BURST_S
        if wait > 0:
            raise Busy("the client sends faster than it may", wait)
        self._full_at[client] = [
            max(at, now) + cost(size) / rate
            for at, (rate, cost) in zip(full_at, self._rates, strict=True)
        ]

    def forget_idle(self, now: float) -> None:
        """Keep nothing of clients whose buckets are full."""
        self._full_at = {
            client: times for client, times in self._full_at.items() if max(times) > now
        }


def _one(_: int) -> float:
    return 1.0
