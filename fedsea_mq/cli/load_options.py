"""The load test's plan from what was typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedsea_mq.errors import ConfigError
from fedsea_mq.load.plan import LINKS, Arrivals, Lengths, Link, LoadPlan, read_trace
from fedsea_mq.settings import explain


def plan_from(arrivals: str, link: str, **fields: Any) -> LoadPlan:
    """The plan of a command line. Raises `ConfigError`, naming the option."""
    for name in ("prompt", "new"):
        fields[name] = Lengths.parse(fields[name])
    if fields["kind"] == "full" and fields["vanishes"]:
        raise ConfigError("--vanishes: only thin clients vanish")
    if fields["warmup_s"] >= fields["duration_s"]:
        raise ConfigError("--warmup: must be shorter than --duration")
    try:
        return LoadPlan(link=_link(link), **_arrivals(arrivals), **fields)
    except ValidationError as error:
        raise ConfigError(f"load test: {explain(error)}") from None


def _arrivals(text: str) -> dict[str, Any]:
    kind, _, rest = text.partition(":")
    try:
        arrivals = Arrivals(kind)
        match arrivals:
            case Arrivals.CLOSED:
                return {"arrivals": arrivals}
            case Arrivals.POISSON:
                return {"arrivals": arrivals, "rate": float(rest)}
            case Arrivals.BURSTS:
                rate, size = rest.split(",")
                return {"arrivals": arrivals, "rate": float(rate), "burst": int(size)}
            case Arrivals.TRACE:
                return {"arrivals": arrivals, "trace": read_trace(Path(rest))}
    except ValueError:
        wanted = "closed, poisson:RATE, bursts:RATE,SIZE or trace:FILE"
        raise ConfigError(f"--arrivals {text!r}: expected {wanted}") from None


def _link(text: str) -> Link:
    if text in LINKS:
        return LINKS[text]
    try:
        delay, jitter, mbps, loss = (float(part) for part in text.split(","))
        return Link(delay_ms=delay, jitter_ms=jitter, mbps=mbps, loss=loss)
    except ValueError:
        wanted = f"{', '.join(LINKS)} or DELAY_MS,JITTER_MS,MBPS,LOSS"
        raise ConfigError(f"--link {text!r}: expected {wanted}") from None
