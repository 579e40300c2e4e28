"""What the processes of a run have told so far, put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

# The process that tells of rounds; all others are members.
AGGREGATOR: Final = "aggregator"
# The event of a process that was killed, and started again.
RESTARTED: Final = "restarted"
Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StepSeen:
    """An optimiser step of one member; `loss` in nats a token, before the step."""

    round: int
    step: int
    loss: float
    samples: int
    samples_per_s: float
    bytes_up: int
    bytes_down: int


@dataclass(slots=True)
class MemberRecord:
    """One member's steps, and its held-out losses by round; `sigma` is that of its noise."""

    steps: dict[tuple[int, int], StepSeen] = field(default_factory=dict)
    held_out: dict[int, float] = field(default_factory=dict)
    sigma: float = 0.0

    @property
    def losses(self) -> list[float]:
        """Of each step, in order."""
        return [seen.loss for _, seen in sorted(self.steps.items())]

    @property
    def newest(self) -> StepSeen | None:
        """The last step, if there was one."""
        return self.steps[max(self.steps)] if self.steps else None

    def total(self, name: str) -> int:
        """A count summed over all steps."""
        return sum(getattr(seen, name) for seen in self.steps.values())


@dataclass(slots=True)
class RunRecord:
    """Grows with each line. A step that is taken again replaces what it was before.

    `finished` are the members that have their final adapters.
    """

    members: dict[str, MemberRecord] = field(default_factory=dict)
    rounds: dict[int, dict[str, Any]] = field(default_factory=dict)
    clipped: list[dict[str, Any]] = field(default_factory=list)
    turned_away: list[dict[str, Any]] = field(default_factory=list)
    repeated: list[dict[str, Any]] = field(default_factory=list)
    restarts: dict[str, int] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    open_round: int = 0

    @property
    def began(self) -> bool:
        """Whether any member has taken a step."""
        return any(member.steps for member in self.members.values())

    def line(self, name: str, line: Line) -> None:
        """Note what a process told, or that it was started again."""
        if line.get("event") == RESTARTED:
            self.restarts[name] = self.restarts.get(name, 0) + 1
        elif name == AGGREGATOR:
            self._aggregator_line(line)
        else:
            self._member_line(name, line)

    def _member_line(self, name: str, line: Line) -> None:
        member = self.members.setdefault(name, MemberRecord())
        match line.get("event"):
            case "step":
                seen = StepSeen(**{key: line[key] for key in StepSeen.__slots__})
                member.steps[seen.round, seen.step] = seen
                member.sigma = line["sigma"]
            case "finished":
                self.finished.add(name)
            case "round":
                self._round(name, member, line)

    def _round(self, name: str, member: MemberRecord, line: Line) -> None:
        if line["clipped"]:
            said = {"round": line["round"], "member": name, "norm": line["update_norm"]}
            self.clipped.append(said)
        if line["validation_loss"] is not None:
            member.held_out[line["round"]] = line["validation_loss"]

    def _aggregator_line(self, line: Line) -> None:
        said = {key: value for key, value in line.items() if key != "event"}
        match line.get("event"):
            case "round_begun":
                self.open_round = line["round"]
            case "round_closed":
                self.rounds[line["round"]] = said
            case "round_repeated":
                self.repeated.append(said)
            case "update_counted" if line["clipped"]:
                self.clipped.append(said)
            case "update_turned_away":
                self.turned_away.append(said)

    def by_name(self) -> Iterator[tuple[str, MemberRecord]]:
        """The members in the order of their names."""
        yield from sorted(self.members.items())

    def as_json(self) -> dict[str, Any]:
        """Losses by member and step, rounds, what went wrong, and totals; plain types."""
        return {
            "losses": {name: member.losses for name, member in self.by_name()},
            "held_out": {name: member.held_out for name, member in self.by_name()},
            "rounds": [said for _, said in sorted(self.rounds.items())],
            "clipped": self.clipped,
            "turned_away": self.turned_away,
            "repeated": self.repeated,
            "restarts": self.restarts,
            "sigma": {name: member.sigma for name, member in self.by_name()},
            **{
                total: sum(member.total(total) for member in self.members.values())
                for total in ("samples", "bytes_up", "bytes_down")
            },
        }
