"""What a comparison is: names with goals, and repeats whose medians are the ratios."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from fedsea_mq.cli.bench.workbench import Workbench

# Ratios by name, and whatever else explains them, of one repeat.
Repeat = tuple[Mapping[str, float], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure that is wanted to be at least, or at most, `goal`; without one it is only told."""

    name: str
    says: str
    goal: float | None = None
    at_most: bool = False

    def judged(self, value: float) -> dict[str, Any]:
        """The goal and whether the value meets it; nothing where there is no goal."""
        if self.goal is None:
            return {}
        return {
            "goal": self.goal,
            "goal_is": "at most" if self.at_most else "at least",
            "met": value <= self.goal if self.at_most else value >= self.goal,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ratios that are measured together; `repeat` measures all of them once."""

    name: str
    ratios: Sequence[Ratio]
    repeat: Callable[[Workbench], Awaitable[Repeat]]
    # Measured only when asked for by name.
    slow: bool = False

    def answers_to(self, name: str) -> bool:
        """Whether `--only NAME` means it."""
        return name == self.name or name in {ratio.name for ratio in self.ratios}


@dataclass(slots=True)
class Outcome:
    """All repeats of a comparison."""

    comparison: Comparison
    repeats: list[Repeat] = field(default_factory=list)

    def values(self, ratio: Ratio) -> list[float]:
        """The ratio in each repeat."""
        return [ratios[ratio.name] for ratios, _ in self.repeats]

    def value(self, ratio: Ratio) -> float:
        """Its median."""
        return median(self.values(ratio))

    def as_json(self) -> dict[str, Any]:
        """Goals, values and what was measured beside them."""
        return {
            "ratios": {
                ratio.name: {
                    "value": self.value(ratio),
                    **ratio.judged(self.value(ratio)),
                    "repeats": self.values(ratio),
                    "says": ratio.says,
                }
                for ratio in self.comparison.ratios
            },
            "measured": [dict(measured) for _, measured in self.repeats],
        }
