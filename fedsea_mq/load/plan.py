"""What a load test does: how many clients, when they ask, for how much, over which links."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, repeat
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedsea_mq.errors import ConfigError

Share = Annotated[float, Field(ge=0, le=1)]
_LENGTHS: Final = re.compile(r"(\d+)(?:-(\d+)|~(\d*\.?\d+))?")
_MAX_LENGTH: Final = 1 << 16
_MAX_SPREAD: Final = 3.0
# Beyond this one process cannot even draw the requests in time.
MAX_RATE: Final = 100_000.0


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Lengths(_Part):
    """A distribution of token counts: `64`, uniform `32-128`, or log-normal `100~0.5`.

    The second number of a log-normal is the standard deviation of the logarithm, the first the
    median.
    """

    low: Annotated[int, Field(ge=1, le=_MAX_LENGTH)]
    high: Annotated[int, Field(ge=1, le=_MAX_LENGTH)]
    spread: Annotated[float, Field(ge=0, le=_MAX_SPREAD)] = 0.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read one of the three forms. Raises `ConfigError`."""
        match = _LENGTHS.fullmatch(text)
        if match is None:
            raise ConfigError(f"lengths {text!r}: expected 64, 32-128 or 100~0.5")
        low, high, spread = int(match[1]), int(match[2] or match[1]), float(match[3] or 0)
        if not all(1 <= length <= _MAX_LENGTH for length in (low, high)):
            raise ConfigError(f"lengths {text!r}: expected 1 to {_MAX_LENGTH} tokens")
        if low > high:
            raise ConfigError(f"lengths {text!r}: expected the smaller first, {high}-{low}")
        if spread > _MAX_SPREAD:
            raise ConfigError(f"lengths {text!r}: expected at most {_MAX_SPREAD:g} after the ~")
        return cls(low=low, high=high, spread=spread)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError("the range is empty")
        return self

    def __str__(self) -> str:
        """The form that `parse` reads."""
        if self.spread:
            return f"{self.low}~{self.spread:g}"
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"

    def draw(self, rng: random.Random) -> int:
        """One length."""
        if self.spread:
            drawn = round(rng.lognormvariate(math.log(self.low), self.spread))
            return min(max(1, drawn), _MAX_LENGTH)
        return rng.randint(self.low, self.high)


class Link(_Part):
    """A client's way to the broker, each way. The emulation is in the client (see `slow_link`)."""

    delay_ms: Annotated[float, Field(ge=0, le=10_000)] = 0.0
    jitter_ms: Annotated[float, Field(ge=0, le=10_000)] = 0.0
    mbps: Annotated[float, Field(gt=0)] | None = Field(None, description="None is no limit")
    loss: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing to emulate."""
        return self == Link()


LINKS: Final = {
    "lan": Link(),
    "wan": Link(delay_ms=25, jitter_ms=1, mbps=100),
    "mobile": Link(delay_ms=40, jitter_ms=15, mbps=20, loss=0.005),
}


class Arrivals(StrEnum):
    """When requests come."""

    CLOSED = "closed"
    """Each session asks again when it was answered."""
    POISSON = "poisson"
    BURSTS = "bursts"
    TRACE = "trace"


class Request(_Part):
    """One request of a trace: when, in seconds from the start, and how long."""

    at_s: Annotated[float, Field(ge=0)]
    prompt_tokens: Annotated[int, Field(ge=1, le=_MAX_LENGTH)]
    new_tokens: Annotated[int, Field(ge=1, le=_MAX_LENGTH)]


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time, from its beginning until before its end."""

    from_s: float
    until_s: float

    def __contains__(self, at_s: float) -> bool:
        return self.from_s <= at_s < self.until_s

    def after(self, start: float) -> Window:
        """The same, told from a clock that showed `start` when this one showed zero."""
        return Window(self.from_s + start, self.until_s + start)


class Slo(_Part):
    """The service level a request must have to count as good."""

    ttft_ms: Annotated[float, Field(gt=0)] = 2000.0
    tpot_ms: Annotated[float, Field(gt=0)] = 200.0


class LoadPlan(_Part):
    """What one load process does; a test divides its clients among several."""

    kind: Literal["thin", "full"] = "thin"
    # One entry a client, which is one connection: how many sessions it keeps going.
    sessions: Annotated[tuple[int, ...], Field(min_length=1)]
    arrivals: Arrivals = Arrivals.CLOSED
    rate: Annotated[float, Field(gt=0, le=MAX_RATE)] = Field(
        1.0, description="requests a second, open loop"
    )
    burst: Annotated[int, Field(ge=1)] = Field(8, description="requests that come at once")
    trace: tuple[Request, ...] = ()
    prompt: Lengths
    new: Lengths
    duration_s: Annotated[float, Field(gt=0, le=86_400)] = Field(
        description="until when requests begin, from the start; the warm-up is part of it"
    )
    warmup_s: Annotated[float, Field(ge=0, le=86_400)] = Field(
        0.0, description="what happens earlier is not measured"
    )
    slo: Slo = Slo()
    link: Link = Link()
    stops: Share = Field(0.0, description="share of requests that are cancelled half way")
    vanishes: Share = Field(0.0, description="share whose client goes without a word")
    once: bool = Field(False, description="each session of a closed loop makes one request")
    together: bool = Field(
        False, description="once, and all decode together when all of them have prefilled"
    )
    in_turn: bool = Field(
        False, description="thin clients: of all decode steps one is on its way at a time"
    )
    seed: int = 0

    @property
    def measured(self) -> Window:
        """The time that every figure is of: after the warm-up; all, if each asks but once."""
        if self.once or self.together:
            return Window(0.0, math.inf)
        return Window(self.warmup_s, self.duration_s)

    def split(self, processes: int) -> list[LoadPlan]:
        """The same load from several processes: clients, rate and trace divided."""
        count = max(1, min(processes, len(self.sessions)))
        return [
            self.model_copy(
                update={
                    "sessions": self.sessions[n::count],
                    "rate": self.rate / count,
                    "trace": self.trace[n::count],
                    "seed": self.seed * 1000 + n,
                }
            )
            for n in range(count)
        ]

    def requests(self, rng: random.Random) -> Iterator[Request]:
        """The requests of an open loop in order of time; without end unless it is a trace."""
        if self.arrivals is Arrivals.TRACE:
            yield from self.trace
            return
        size = self.burst if self.arrivals is Arrivals.BURSTS else 1
        for at_s in accumulate(rng.expovariate(self.rate / size) for _ in repeat(None)):
            for _ in range(size):
                yield self.drawn(rng, at_s)

    def drawn(self, rng: random.Random, at_s: float = 0.0) -> Request:
        """A request of drawn lengths."""
        return Request(
            at_s=at_s, prompt_tokens=self.prompt.draw(rng), new_tokens=self.new.draw(rng)
        )


def read_trace(file: Path) -> tuple[Request, ...]:
    """A trace: JSON lines of `at_s`, `prompt_tokens`, `new_tokens`. Raises `ConfigError`."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error
    requests = []
    for number, line in enumerate(lines, start=1):
        try:
            requests.append(Request.model_validate(json.loads(line)))
        except (ValidationError, json.JSONDecodeError):
            wanted = '{"at_s": 0.5, "prompt_tokens": 64, "new_tokens": 32}'
            raise ConfigError(f"{file} line {number}: expected {wanted}") from None
    if not requests:
        raise ConfigError(f"{file}: no request in it")
    return tuple(sorted(requests, key=lambda request: request.at_s))
