"""Which of the cuts is worth choosing, and why, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fedsea_mq.planning.forecast import Forecast
from fedsea_mq.privacy.audited import Finding

# Where an audit says that so much of a prompt is recovered, nothing worth naming is hidden.
_HIDES_NOTHING: Final = 0.9
_GB: Final = 1e9
_TPOT_STEP_S: Final = 1e-5


@dataclass(frozen=True, slots=True)
class Option:
    """A cut, what it costs, and what an audit found at it, if it was audited."""

    forecast: Forecast
    finding: Finding | None
    fits: bool
    """Whether the client has the memory, and a node room for a session."""

    @property
    def depth(self) -> int:
        """Blocks between text and wire, on the side where there are fewer."""
        cut = self.forecast.cut
        return min(cut.head_blocks, cut.tail_blocks)

    @property
    def exposure(self) -> tuple[float, int]:
        """Smaller is better: what was recovered, then how shallow the cut is.

        What was not audited counts as all recovered.
        """
        return (1.0 if self.finding is None else self.finding.share, -self.depth)

    def is_beaten_by(self, other: Option) -> bool:
        """Whether the other is nowhere worse, and somewhere better."""
        no_worse = (
            other.exposure <= self.exposure,
            other.tpot_steps <= self.tpot_steps,
            other.forecast.client_bytes <= self.forecast.client_bytes,
        )
        return all(no_worse) and self._scores != other._scores

    @property
    def tpot_steps(self) -> int:
        """TPOT as far as it matters, so that rounding decides nothing."""
        return round(self.forecast.tpot_s / _TPOT_STEP_S)

    @property
    def _scores(self) -> tuple[tuple[float, int], int, int]:
        return self.exposure, self.tpot_steps, self.forecast.client_bytes


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The chosen option, and why."""

    option: Option
    reason: str


def pareto_front(options: Sequence[Option]) -> list[Option]:
    """Those that no other beats in exposure, TPOT and client memory together."""
    return [one for one in options if not any(one.is_beaten_by(other) for other in options)]


def recommended(options: Sequence[Option], slowdown: float) -> Recommendation | None:
    """The least exposed cut that fits and is at most `slowdown` times as slow as the fastest.

    None if none fits.
    """
    front = pareto_front([one for one in options if one.fits])
    if not front:
        return None
    fastest = min(one.forecast.tpot_s for one in front)
    fast = [one for one in front if one.forecast.tpot_s <= slowdown * fastest]
    best = min(fast, key=lambda one: (one.exposure, one.tpot_steps, one.forecast.client_bytes))
    return Recommendation(best, _reason(best, options, slowdown, fastest))


def _reason(best: Option, options: Sequence[Option], slowdown: float, fastest: float) -> str:
    said, cost = best.forecast, best.forecast.tpot_s / fastest
    parts = [
        f"{said.cut} is the least exposed cut that fits the client's memory "
        f"({said.client_bytes / _GB:.2f} GB) with at most {slowdown:g} times the TPOT of the "
        f"fastest that fits: {1000 * said.tpot_s:.1f} ms, {cost:.2f} times.",
        _of_privacy(best),
    ]
    if (deeper := _next_deeper(best, options)) is not None:
        parts.append(_why_not(deeper))
    return " ".join(parts)


def _of_privacy(best: Option) -> str:
    if best.finding is None:
        return (
            "No audit of this cut was given: depth is not known to hide anything. Run fedsea audit."
        )
    said = str(best.finding)
    nothing = (
        " So it hides nothing from that server." if best.finding.share >= _HIDES_NOTHING else ""
    )
    return f"{said[0].upper()}{said[1:]}.{nothing}"


def _next_deeper(best: Option, options: Sequence[Option]) -> Option | None:
    """The nearest of the less exposed, whether or not it fits or is fast enough."""
    less = [one for one in pareto_front(options) if one.exposure < best.exposure]
    return max(less, key=lambda one: one.exposure, default=None)


def _why_not(deeper: Option) -> str:
    said = deeper.forecast
    if not deeper.fits:
        return (
            f"The next less exposed, {said.cut}, does not fit ({said.client_bytes / _GB:.2f} GB)."
        )
    return f"The next less exposed, {said.cut}, takes {1000 * said.tpot_s:.1f} ms a token."
