"""What the processes of a run reported so far: steps and rounds, whoever reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class StepSeen:
    """An optimiser step of one member; `loss` in nats a token, before the step."""

    member: str
    round: int
    step: int
    loss: float
    samples_per_s: float
    bytes_up: int
    bytes_down: int
    at_s: float


@dataclass(frozen=True, slots=True)
class RoundSeen:
    """A round that was closed; `loss` is the mean over those that were counted."""

    round: int
    loss: float
    counted: tuple[str, ...]
    missing: tuple[str, ...]
    clipped: tuple[str, ...]
    at_s: float


@dataclass(frozen=True, slots=True)
class ValidationSeen:
    """Mean loss on the held-out examples of one member, after its part in a round."""

    member: str
    round: int
    loss: float


@dataclass(slots=True)
class RunRecord:
    """Grows as a run goes on. Steps of attempts that came to nothing are in it no more."""

    local_steps: int
    steps: dict[str, dict[int, StepSeen]] = field(default_factory=dict)
    rounds: dict[int, RoundSeen] = field(default_factory=dict)
    validations: dict[str, dict[int, ValidationSeen]] = field(default_factory=dict)
    repeated: int = 0

    def step(self, seen: StepSeen) -> None:
        """Note a step; one that is taken again replaces what it was before."""
        self.steps.setdefault(seen.member, {})[self.number(seen)] = seen

    def number(self, seen: StepSeen) -> int:
        """The step's number in the run, from 0."""
        return seen.round * self.local_steps + seen.step

    def closed(self, seen: RoundSeen) -> None:
        """Note a round that was closed."""
        self.rounds[seen.round] = seen

    def validated(self, seen: ValidationSeen) -> None:
        """Note a held-out loss."""
        self.validations.setdefault(seen.member, {})[seen.round] = seen

    def losses(self, member: str) -> list[float]:
        """Of each step, in order."""
        return [seen.loss for _, seen in sorted(self.steps.get(member, {}).items())]

    def newest(self) -> Iterator[StepSeen]:
        """The last step of each member."""
        return (seen[max(seen)] for _, seen in sorted(self.steps.items()))

    def as_json(self) -> dict[str, Any]:
        """Loss by member and step, rounds, and sums; plain types."""
        return {
            "losses": {member: self.losses(member) for member in sorted(self.steps)},
            "validation": {
                member: {seen.round: seen.loss for seen in by_round.values()}
                for member, by_round in sorted(self.validations.items())
            },
            "rounds": [asdict(seen) for _, seen in sorted(self.rounds.items())],
            "repeated_attempts": self.repeated,
            "bytes_up": sum(seen.bytes_up for seen in self.newest()),
            "bytes_down": sum(seen.bytes_down for seen in self.newest()),
        }
