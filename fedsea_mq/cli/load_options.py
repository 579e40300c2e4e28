"""The load test's plan from what was typed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from fedsea_mq.errors import ConfigError
from fedsea_mq.load.plan import LINKS, MAX_RATE, Arrivals, Lengths, Link, LoadPlan, read_trace
from fedsea_mq.settings import explain

# Seconds that are not measured, unless said: of a short test less, or nothing would be left.
_WARMUP_S: Final = 3.0
_WARMUP_SHARE: Final = 0.25


def plan_from(
    arrivals: str, link: str, duration_s: float, warmup_s: float | None, **fields: Any
) -> LoadPlan:
    """The plan of a command line. Raises `ConfigError`, naming the option."""
    for name in ("prompt", "new"):
        try:
            fields[name] = Lengths.parse(fields[name])
        except ConfigError as error:
            raise ConfigError(f"--{name}: {error}") from None
    if fields["kind"] == "full" and fields["vanishes"]:
        raise ConfigError("--vanishes: only thin clients vanish")
    if fields["stops"] + fields["vanishes"] > 1:
        raise ConfigError("--stops and --vanishes: more than all of the requests together")
    if warmup_s is None:
        warmup_s = min(_WARMUP_S, _WARMUP_SHARE * duration_s)
    if warmup_s >= duration_s:
        raise ConfigError(
            f"--warmup {warmup_s:g}: is part of --duration {duration_s:g}, and must be less"
        )
    timed = {"duration_s": duration_s, "warmup_s": warmup_s}
    try:
        plan = LoadPlan(link=_link(link), **_arrivals(arrivals), **timed, **fields)
    except ValidationError as error:
        raise ConfigError(f"load test: {explain(error)}") from None
    if plan.trace and plan.trace[0].at_s > duration_s:
        first = plan.trace[0].at_s
        raise ConfigError(
            f"--arrivals {arrivals!r}: the first request is at {first:g} s, after --duration"
        )
    return plan


def _arrivals(text: str) -> dict[str, Any]:
    kind, _, rest = text.partition(":")
    try:
        arrivals = Arrivals(kind)
        match arrivals:
            case Arrivals.CLOSED if not rest:
                return {"arrivals": arrivals}
            case Arrivals.POISSON:
                return {"arrivals": arrivals, "rate": _rate(rest)}
            case Arrivals.BURSTS:
                rate, size = rest.split(",")
                if int(size) < 1:
                    raise ValueError("no burst")
                return {"arrivals": arrivals, "rate": _rate(rate), "burst": int(size)}
            case Arrivals.TRACE if rest:
                return {"arrivals": arrivals, "trace": read_trace(Path(rest))}
            case _:
                raise ValueError(text)
    except ConfigError as error:
        raise ConfigError(f"--arrivals: {error}") from None
    except ValueError:
        raise ConfigError(
            f"--arrivals {text!r}: expected closed, poisson:RATE, bursts:RATE,SIZE or trace:FILE; "
            f"RATE is requests a second, above 0 and at most {MAX_RATE:g}, SIZE at least 1"
        ) from None


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate <= MAX_RATE:
        raise ValueError("no such rate")
    return rate


def _link(text: str) -> Link:
    if text in LINKS:
        return LINKS[text]
    try:
        delay, jitter, mbps, loss = (float(part) for part in text.split(","))
        limit = None if math.isinf(mbps) else mbps
        return Link(delay_ms=delay, jitter_ms=jitter, mbps=limit, loss=loss)
    except ValueError:
        raise ConfigError(
            f"--link {text!r}: expected {', '.join(LINKS)} or DELAY_MS,JITTER_MS,MBPS,LOSS, with "
            "MBPS above 0 or inf, and LOSS a share below 1"
        ) from None
