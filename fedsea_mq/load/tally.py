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
from fedsea_mq.load.plan import Slo

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
    """Counts and times of many requests. Times are in seconds."""

    outcomes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    good: int = 0
    """Requests done within the service level."""
    good_tokens: int = 0
    refusals: int = 0
    """Busy replies that were waited out."""
    round_trips: int = 0
    direct_trips: int = 0
    """Round trips to a trunk node, and those of them past the broker."""
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
    tokens_of: Counter[str] = field(default_factory=Counter)
    """New tokens by client."""
    tokens_at: Counter[int] = field(default_factory=Counter)
    """New tokens by second since the start."""
    busiest_share: float = 0.0
    """CPU that the busiest load process used, in cores."""
    decode_tokens: int = 0
    decode_from: float = math.inf
    decode_until: float = 0.0
    """Tokens after the first of each request, and the time from the first to the last of them."""
    begun_at: float = math.inf
    ended_at: float = 0.0
    """When the first measured request began, and the last one ended."""

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
    """One request as it goes: its owner calls `token` at each token and `end` once."""

    def __init__(self, client: str, begun_at: float, measured_from: float) -> None:
        self._client = client
        self._begun_at = begun_at
        self._measured_from = measured_from
        self._token_times: list[float] = []
        self._decode_from: float | None = None

    @property
    def tokens(self) -> int:
        """New tokens so far."""
        return len(self._token_times)

    def token(self, now: float) -> None:
        """One token came."""
        self._token_times.append(now)

    def decodes(self, now: float) -> None:
        """Decoding begins now; without this it begins with the first token."""
        self._decode_from = now

    def end(self, outcome: Outcome | str, now: float, tally: Tally, slo: Slo) -> None:
        """The request is over; an outcome that is no `Outcome` names an error."""
        measured = self._begun_at >= self._measured_from
        counted = tally.outcomes if isinstance(outcome, Outcome) else tally.errors
        counted[str(outcome)] += 1
        times = self._token_times
        for at in times:
            if at >= self._measured_from:
                tally.tokens_of[self._client] += 1
                tally.tokens_at[int(at - self._measured_from)] += 1
        if not measured or not times:
            return
        tally.begun_at = min(tally.begun_at, self._begun_at)
        tally.ended_at = max(tally.ended_at, now)
        tally.ttft.note(times[0] - self._begun_at)
        decoded = [self._decode_from or times[0], *times[1:]]
        for before, after in pairwise(decoded):
            tally.itl.note(after - before)
        tally.decode_tokens += len(decoded) - 1
        tally.decode_from = min(tally.decode_from, decoded[0])
        tally.decode_until = max(tally.decode_until, decoded[-1])
        if outcome is Outcome.DONE:
            self._settle(now, decoded, tally, slo)

    def _settle(self, now: float, decoded: list[float], tally: Tally, slo: Slo) -> None:
        times = self._token_times
        ttft_s = times[0] - self._begun_at
        tpot_s = (decoded[-1] - decoded[0]) / max(1, len(decoded) - 1)
        tally.e2e.note(now - self._begun_at)
        if len(times) > 1:
            tally.tpot.note(tpot_s)
        if ttft_s * 1000 <= slo.ttft_ms and tpot_s * 1000 <= slo.tpot_ms:
            tally.good += 1
            tally.good_tokens += len(times)


def jain(shares: list[float]) -> float:
    """Jain's fairness index of the clients' shares: 1 if all are equal, 1/n if one has all."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0
