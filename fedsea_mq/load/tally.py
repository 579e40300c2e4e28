"""What the requests of a load test met: counted as they go, merged over processes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final, Self

from fedsea_mq.load.histogram import Histogram
from fedsea_mq.load.plan import Slo, Window

# An event loop that wakes later than this measures itself.
LATE_S: Final = 0.05
# Of several processes' times the earliest, not the latest, is the whole test's.
_EARLIEST: Final = frozenset({"decode_from", "begun_at"})


class Outcome(StrEnum):
    """How a request ended."""

    DONE = "done"
    STOPPED = "stopped"
    VANISHED = "vanished"
    BUSY = "busy"
    """Refused until its patience ran out."""


@dataclass(slots=True)
class Tally:
    """Counts and times of many requests, of what happened in one window. Times are in seconds.

    A request counts where it ends, a first token and a time between two where it comes.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    errors_outside: Counter[str] = field(default_factory=Counter)
    """Errors before the window or after it."""
    said: dict[str, str] = field(default_factory=dict)
    """What the first error of each name said."""
    unfinished: int = 0
    """Requests that ran when the window ended."""
    overdue: int = 0
    """Of those, the ones whose first token was later than the service level by then."""
    good: int = 0
    """Requests done within the service level."""
    good_tokens: int = 0
    """Tokens of those, as far as they came in the window."""
    refusals: int = 0
    """Busy replies that were waited out."""
    round_trips: int = 0
    direct_trips: int = 0
    """Requests to trunk nodes that were answered, and those of them past the broker."""
    bytes_up: int = 0
    bytes_down: int = 0
    unsent: int = 0
    """Open-loop requests that the generator could not start."""
    ttft: Histogram = field(default_factory=Histogram)
    tpot: Histogram = field(default_factory=Histogram)
    itl: Histogram = field(default_factory=Histogram)
    e2e: Histogram = field(default_factory=Histogram)
    lag: Histogram = field(default_factory=Histogram)
    """How late the generator's own event loop was."""
    late_share: float = 0.0
    """Share of the time in which it was late, in the process where it was largest."""
    tokens_of: Counter[str] = field(default_factory=Counter)
    """New tokens by client."""
    tokens_at: Counter[int] = field(default_factory=Counter)
    """New tokens by second of the window."""
    busiest_share: float = 0.0
    """CPU that the busiest load process used, in cores."""
    decode_tokens: int = 0
    decode_from: float = math.inf
    decode_until: float = 0.0
    """Tokens after the first of each request, and the time from the first to the last of them."""
    begun_at: float = math.inf
    ended_at: float = 0.0
    """When the first request that counts began, and the last one ended."""

    @property
    def tokens(self) -> int:
        """New tokens in all."""
        return self.tokens_of.total()

    def add(self, other: Tally) -> None:
        """Count all that `other` counted."""
        for part in fields(self):
            mine, theirs = getattr(self, part.name), getattr(other, part.name)
            match mine:
                case Histogram():
                    mine.add(theirs)
                case Counter():
                    mine.update(theirs)
                case dict():
                    setattr(self, part.name, theirs | mine)
                case float():
                    pick = min if part.name in _EARLIEST else max
                    setattr(self, part.name, pick(mine, theirs))
                case _:
                    setattr(self, part.name, mine + theirs)

    def as_json(self) -> dict[str, Any]:
        """For the way from a load process to the test."""
        return {
            part.name: dict(value.bins) if isinstance(value, Histogram) else value
            for part in fields(self)
            for value in (getattr(self, part.name),)
        }

    @classmethod
    def from_json(cls, read: Mapping[str, Any]) -> Self:
        """What `as_json` wrote; JSON has made texts of the integer keys."""
        made = cls()
        for part in fields(made):
            value = read[part.name]
            match getattr(made, part.name):
                case Histogram() as histogram:
                    histogram.bins.update(_by_integer(value))
                case Counter() as counter:
                    counter.update(_by_integer(value) if part.name == "tokens_at" else value)
                case _:
                    setattr(made, part.name, value)
        return made


def _by_integer(counts: Mapping[Any, int]) -> dict[int, int]:
    return {int(key): count for key, count in counts.items()}


class RequestWatch:
    """One request as it goes: its owner calls `token` at each token and `end` once.

    `begun_at`, the times of all calls and the `window` that is measured are of one clock.
    """

    def __init__(self, client: str, begun_at: float, window: Window) -> None:
        self._client = client
        self._begun_at = begun_at
        self._window = window
        self._token_times: list[float] = []
        self._decode_from: float | None = None

    @property
    def tokens(self) -> int:
        """New tokens so far."""
        return len(self._token_times)

    @property
    def ttft_s(self) -> float | None:
        """Until the first token, if there is one."""
        return self._token_times[0] - self._begun_at if self._token_times else None

    @property
    def tpot_s(self) -> float | None:
        """Per token after the first, if there are any."""
        decoded = self._decoded
        return (decoded[-1] - decoded[0]) / (len(decoded) - 1) if len(decoded) > 1 else None

    def token(self, now: float) -> None:
        """One token came."""
        self._token_times.append(now)

    def decodes(self, now: float) -> None:
        """Decoding begins now; without this it begins with the first token."""
        self._decode_from = now

    def end(self, outcome: Outcome | str, now: float, tally: Tally, slo: Slo) -> None:
        """The request is over; an outcome that is no `Outcome` names an error."""
        self._count_tokens(tally)
        if now in self._window:
            counted = tally.outcomes if isinstance(outcome, Outcome) else tally.errors
            counted[str(outcome)] += 1
            tally.begun_at = min(tally.begun_at, self._begun_at)
            tally.ended_at = max(tally.ended_at, now)
            if outcome is Outcome.DONE:
                self._settle(now, tally, slo)
            return
        if not isinstance(outcome, Outcome):
            tally.errors_outside[outcome] += 1
        if now >= self._window.until_s:
            tally.unfinished += 1
            first = min([*self._token_times[:1], self._window.until_s])
            tally.overdue += first - self._begun_at > slo.ttft_ms / 1000

    def _count_tokens(self, tally: Tally) -> None:
        times, window = self._token_times, self._window
        for at in times:
            if at in window:
                tally.tokens_of[self._client] += 1
                tally.tokens_at[int(at - window.from_s)] += 1
        if times and times[0] in window:
            tally.ttft.note(times[0] - self._begun_at)
        for before, after in pairwise(self._decoded):
            if after in window:
                tally.itl.note(after - before)
                tally.decode_tokens += 1
                tally.decode_from = min(tally.decode_from, max(before, window.from_s))
                tally.decode_until = max(tally.decode_until, after)

    @property
    def _decoded(self) -> list[float]:
        """When decoding began, and each token after the first."""
        times = self._token_times
        return [self._decode_from or times[0], *times[1:]] if times else []

    def _settle(self, now: float, tally: Tally, slo: Slo) -> None:
        tally.e2e.note(now - self._begun_at)
        ttft_s, tpot_s = self.ttft_s, self.tpot_s
        if ttft_s is None:
            return
        if tpot_s is not None:
            tally.tpot.note(tpot_s)
        if ttft_s * 1000 <= slo.ttft_ms and (tpot_s or 0.0) * 1000 <= slo.tpot_ms:
            tally.good += 1
            tally.good_tokens += sum(at in self._window for at in self._token_times)


def jain(shares: list[float]) -> float:
    """Jain's fairness index of the clients' shares: 1 if all are equal, 1/n if one has all.

    NaN where nobody has any.
    """
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else math.nan
