"""The strategies: whose frames make the next joint pass, and whose steps are taken together. Pure.

Members are asked in the order of the round. Each strategy is an unsplit training of its own:

hierarchical: each member trains an adapter of its own, in its own steps; who waits goes together.
client_batch: one adapter learns from the mean of all members' losses, in common steps.
sequential:   one adapter learns from one member after the other, all steps of each in a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from fedsea_mq.protocol.envelope import Envelope
from fedsea_mq.run_settings import Strategy
from fedsea_mq.training.trunk_work import Piece

SHARED: Final = "shared"


@dataclass(slots=True)
class Asked:
    """A request to step that waits, since when; `envelope` is that of its newest copy."""

    envelope: Envelope
    squared_norm: float
    since: float


@dataclass(slots=True)
class Member:
    """How far a member is in the attempt, and what of it waits.

    `steps` were taken; `asked` were asked for: one more while a step waits. `forwards` are of the
    step after those, by their number in it; `unanswered` are its frames that wait for a reply.
    """

    name: str
    adapter: str
    out: bool = False
    steps: int = 0
    asked: int = 0
    forwards: dict[int, tuple[Piece, float]] = field(default_factory=dict)
    # By the frame's number: a batch that is evaluated may have any number in any step.
    evaluations: dict[int, tuple[Piece, Envelope]] = field(default_factory=dict)
    step: Asked | None = None
    # Batches of this step that have no gradient yet, and whether there was one that has.
    open: set[int] = field(default_factory=set)
    learned: bool = False
    held_positions: int = 0
    sequences: int = 0
    unanswered: int = 0
    answered_at: float = 0.0

    @property
    def runs(self) -> bool:
        """Whether its forward passes may be computed: the step before them was taken."""
        return not self.out and self.asked == self.steps


@dataclass(frozen=True, slots=True)
class Gap:
    """Since when others wait for these members."""

    since: float
    missing: Sequence[Member]


class Gathering(Protocol):
    """The rules of one strategy."""

    averages: bool
    """Whether a joint pass is of one loss, the mean of its members'."""

    def adapter(self, member: str) -> str:
        """The adapter that a member's sequences go over."""
        ...

    def forward(self, members: Sequence[Member]) -> list[tuple[Member, int]]:
        """The next joint pass: members and which of their batches; empty if none is ready."""
        ...

    def steps(self, members: Sequence[Member]) -> list[Member]:
        """Whose steps are to be taken now, as one; empty if none are."""
        ...

    def gaps(self, members: Sequence[Member]) -> Iterator[Gap]:
        """For whom other members wait."""
        ...

    def weights(self, counted: Sequence[Member]) -> dict[str, float]:
        """By what weights adapters are averaged at the end; empty if there is only one."""
        ...


class Hierarchical:
    """Adapters apart; passes of whoever waits go together."""

    averages = False

    def adapter(self, member: str) -> str:
        """Its own."""
        return member

    def forward(self, members: Sequence[Member]) -> list[tuple[Member, int]]:
        """One batch of each member that waits."""
        return [(one, min(one.forwards)) for one in members if one.runs and one.forwards]

    def steps(self, members: Sequence[Member]) -> list[Member]:
        """Of one member, the first that waits."""
        return [one for one in members if one.step is not None][:1]

    def gaps(self, members: Sequence[Member]) -> Iterator[Gap]:
        """Nobody waits for another before there is a pass."""
        yield from ()

    def weights(self, counted: Sequence[Member]) -> dict[str, float]:
        """By the sequences that each learned from."""
        return {one.adapter: float(one.sequences) for one in counted}


class ClientBatch:
    """One adapter; every pass and every step is of all members."""

    averages = True

    def adapter(self, member: str) -> str:
        """The one that all share."""
        return SHARED

    def forward(self, members: Sequence[Member]) -> list[tuple[Member, int]]:
        """The first batch that all members have sent that are not done with the step."""
        needed = [one for one in members if one.runs]
        for micro in sorted({micro for one in needed for micro in one.forwards}):
            if all(micro in one.forwards for one in needed):
                return [(one, micro) for one in needed]
        return []

    def steps(self, members: Sequence[Member]) -> list[Member]:
        """Of all members, once all have asked."""
        there = [one for one in members if not one.out]
        return there if all(one.step is not None for one in there) else []

    def gaps(self, members: Sequence[Member]) -> Iterator[Gap]:
        """Batches that not all have sent, and steps that not all have asked for."""
        needed = [one for one in members if one.runs]
        for micro in {micro for one in needed for micro in one.forwards}:
            since = min(one.forwards[micro][1] for one in needed if micro in one.forwards)
            yield Gap(since, [one for one in needed if micro not in one.forwards])
        asked = [one.step.since for one in members if one.step is not None]
        if asked:
            yield Gap(min(asked), [one for one in members if not one.out and one.step is None])

    def weights(self, counted: Sequence[Member]) -> dict[str, float]:
        """None: the one adapter has learned from all."""
        return {}


class Sequential:
    """One adapter; members have it in turn, for all steps of the round."""

    averages = False

    def __init__(self, local_steps: int) -> None:
        self._local_steps = local_steps

    def adapter(self, member: str) -> str:
        """The one that all share."""
        return SHARED

    def _turn(self, members: Sequence[Member]) -> list[Member]:
        left = (one for one in members if not one.out and one.steps < self._local_steps)
        first = next(left, None)
        return [] if first is None else [first]

    def forward(self, members: Sequence[Member]) -> list[tuple[Member, int]]:
        """A batch of the member whose turn it is."""
        turn = self._turn(members)
        return [(one, min(one.forwards)) for one in turn if one.runs and one.forwards]

    def steps(self, members: Sequence[Member]) -> list[Member]:
        """Of the member whose turn it is."""
        return [one for one in self._turn(members) if one.step is not None]

    def gaps(self, members: Sequence[Member]) -> Iterator[Gap]:
        """A turn may take as long as its member's session lives."""
        yield from ()

    def weights(self, counted: Sequence[Member]) -> dict[str, float]:
        """None: the one adapter has learned from all."""
        return {}


def gathering(strategy: Strategy, local_steps: int) -> Gathering:
    """The rules of a strategy, for rounds of so many steps."""
    match strategy:
        case Strategy.HIERARCHICAL:
            return Hierarchical()
        case Strategy.CLIENT_BATCH:
            return ClientBatch()
        case Strategy.SEQUENTIAL:
            return Sequential(local_steps)
