"""First come, first served, for those that are refused for want of room and ask again. Pure.

Without it, whoever asks in the moment in which room is made has it: clients that just ended a
session take the next one, and others ask in vain for minutes. With one pause for all, a thousand
that wait ask twice a second each, and answering them is what the machine is busy with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_SOONEST_S: Final = 0.5
_LATEST_S: Final = 10.0
# How much later each one further down the list is to ask.
_APART_S: Final = 0.01
# Who is this late is not coming, and waits no longer.
_GRACE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Room:
    """What is free now."""

    sessions: int
    positions: int


@dataclass(frozen=True, slots=True)
class _Waiting:
    positions: int
    until: float


class WaitingList:
    """Who was refused, in the order in which they first asked; at most `most` of them.

    Those that find the list full are refused like others, but keep no place.
    """

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._waiting: dict[bytes, _Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def admit(self, session: bytes, positions: int, room: Room, now: float) -> float | None:
        """None if there is room for the session beside all that have waited longer.

        Otherwise the seconds after which it should ask again; until then, and a little longer, its
        place is kept.
        """
        ahead = self._ahead(session, now)
        taken = sum(self._waiting[other].positions for other in ahead)
        if len(ahead) < room.sessions and taken + positions <= room.positions:
            self._waiting.pop(session, None)
            return None
        pause_s = min(_SOONEST_S + _APART_S * len(ahead), _LATEST_S)
        if session in self._waiting or len(self._waiting) < self._most:
            # Written over, it stays where it is in the order.
            self._waiting[session] = _Waiting(positions, now + pause_s + _GRACE_S)
        return pause_s

    def _ahead(self, session: bytes, now: float) -> list[bytes]:
        """Who has waited longer; those that did not come back are dropped."""
        ahead = []
        for other, waiting in list(self._waiting.items()):
            if other == session:
                break
            if waiting.until < now:
                del self._waiting[other]
            else:
                ahead.append(other)
        return ahead
