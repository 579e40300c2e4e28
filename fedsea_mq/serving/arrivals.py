"""Which sessions are about to send their next work, and how long to wait for them.

A trunk that starts a step the moment anything waits falls into two halves that never meet: while
one computes, the other's answers travel. Waiting for the half that is on its way costs less than
the second pass over the weights that it saves. Pure: times come in as arguments.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

_SMOOTHING: Final = 0.2
# A session is expected until its usual turnaround and this many mean deviations have passed.
_DEVIATIONS: Final = 3.0


@dataclass(slots=True)
class _Habit:
    """The time from an answer to the next work: running mean and mean deviation."""

    mean_s: float
    deviation_s: float

    def note(self, seconds: float) -> None:
        self.deviation_s += _SMOOTHING * (abs(seconds - self.mean_s) - self.deviation_s)
        self.mean_s += _SMOOTHING * (seconds - self.mean_s)


@dataclass(slots=True)
class _Session:
    """When the session was last answered, by what, and its habit after each such answer."""

    lane: Hashable = None
    answered_at: float = 0.0
    habits: dict[Hashable, _Habit] = field(default_factory=dict)

    def note(self, seconds: float) -> None:
        habit = self.habits.get(self.lane)
        if habit is None:
            self.habits[self.lane] = _Habit(seconds, seconds / 2)
        else:
            habit.note(seconds)

    def due(self) -> tuple[float, float] | None:
        """When its next work should come, and when to stop expecting it; None if unknown."""
        habit = self.habits.get(self.lane)
        if habit is None:
            return None
        likely = self.answered_at + habit.mean_s
        return likely, likely + _DEVIATIONS * habit.deviation_s


class Arrivals:
    """The habits of every session, and who is on the way.

    `lane` is the kind of work that was answered: what follows one kind may come at once, and what
    follows another after a round trip.
    """

    def __init__(self) -> None:
        self._sessions: dict[bytes, _Session] = {}
        self._on_the_way: set[bytes] = set()

    @property
    def sessions(self) -> int:
        """Sessions that are known."""
        return len(self._sessions)

    @property
    def any_on_the_way(self) -> bool:
        """Whether any answered session has yet to send its next work, and is not overdue."""
        return bool(self._on_the_way)

    def answered(self, session: bytes, lane: Hashable, now: float) -> None:
        """The session was given a result; its next work follows, unless it ends."""
        known = self._sessions.get(session)
        if known is not None:  # else it left while its last step ran
            known.lane, known.answered_at = lane, now
            self._on_the_way.add(session)

    def arrived(self, session: bytes, now: float) -> None:
        """The session sent work."""
        known = self._sessions.setdefault(session, _Session())
        if known.lane is not None:
            known.note(now - known.answered_at)
            known.lane = None
        self._on_the_way.discard(session)

    def left(self, session: bytes) -> None:
        """The session ended."""
        self._sessions.pop(session, None)
        self._on_the_way.discard(session)

    def worth_waiting_until(self, now: float, latest: float) -> float | None:
        """By when all who should come before `latest` should be here; None if nobody should.

        Who is overdue is no longer on the way, and who will be later than `latest` not waited for.
        """
        until = None
        for session in list(self._on_the_way):
            due = self._sessions[session].due()
            if due is None or due[1] <= now:
                self._on_the_way.discard(session)
            elif due[0] <= latest:
                until = max(until or 0.0, min(due[1], latest))
        return until
