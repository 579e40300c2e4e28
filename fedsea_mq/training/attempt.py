"""One attempt at a round, at the trunk: its members, the passes that wait, what is next. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from fedsea_mq.errors import AttemptOver, TicketUnknown
from fedsea_mq.protocol.training_messages import BeginRound
from fedsea_mq.run_settings import Strategy
from fedsea_mq.training.gathering import Gap, Member, gathering
from fedsea_mq.training.ledger import Ledger
from fedsea_mq.training.trunk_work import (
    DropPasses,
    GradientPiece,
    Piece,
    Restore,
    RunBackward,
    RunForward,
    Save,
    TakeStep,
    Work,
)


@dataclass(slots=True)
class Pass:
    """A joint pass that waits for its gradients, the first of which came at `since`."""

    pieces: Sequence[Piece]
    gradients: dict[str, GradientPiece] = field(default_factory=dict)
    since: float = 0.0


class Attempt:
    """The state of an attempt; `begun_at` is when the trunk stood where the round begins."""

    def __init__(self, begin: BeginRound, strategy: Strategy) -> None:
        self.begin = begin
        self.gathering = gathering(strategy, begin.local_steps)
        self.members = {name: Member(name, self.gathering.adapter(name)) for name in begin.members}
        self.ledgers = {name: Ledger() for name in begin.members}
        self.passes: dict[int, Pass] = {}
        self.begun_at: float | None = None
        self._dropped: list[int] = []
        self._numbered = 0

    @property
    def id(self) -> bytes:
        """What its frames name it by."""
        return self.begin.attempt

    @property
    def those_in(self) -> list[Member]:
        """The members that are not out, in their order."""
        return [one for one in self.members.values() if not one.out]

    def member(self, name: str | None) -> Member:
        """A member that is in. Raises `AttemptOver`."""
        member = self.members.get(name or "")
        if member is None or member.out:
            raise AttemptOver("this member is not in the attempt, or no longer")
        return member

    def present(self, work: RunForward | RunBackward) -> Iterator[tuple[Member, Piece]]:
        """The pieces of a pass whose members are still in."""
        for piece in work.pieces:
            if not self.members[piece.member].out:
                yield self.members[piece.member], piece

    def waiting(self, member: str, micro: int) -> tuple[Pass, Piece]:
        """The pass that a member's gradient is for, and its piece of it. Raises `TicketUnknown`."""
        for waiting in self.passes.values():
            for piece in waiting.pieces:
                if (piece.member, piece.micro) == (member, micro):
                    return waiting, piece
        raise TicketUnknown(f"no forward pass of batch {micro} waits for its gradient")

    def leave(self, member: Member) -> None:
        """The others go on without this member, for the rest of the attempt."""
        member.out = True
        member.forwards.clear()
        member.evaluations.clear()
        member.step = None
        for waiting in self.passes.values():
            waiting.gradients.pop(member.name, None)
        self.drop_orphans()

    def drop_orphans(self) -> None:
        """Give up the passes of whose members none is in."""
        for number, waiting in list(self.passes.items()):
            if all(self.members[piece.member].out for piece in waiting.pieces):
                del self.passes[number]
                self._dropped.append(number)

    def late(
        self, now: float, patience_s: float, is_here: Callable[[str], bool]
    ) -> Iterator[Member]:
        """The members that others have waited for too long, and those that never came.

        A member is not late while a frame of its own waits for an answer.
        """
        if self.begun_at is None:
            return
        if now > self.begun_at + patience_s:
            yield from (one for one in self.those_in if not is_here(one.name))
        for gap in [*self.gathering.gaps(self.those_in), *self._gradient_gaps()]:
            for member in gap.missing:
                silent_since = max(gap.since, member.answered_at, self.begun_at)
                if not member.unanswered and now > silent_since + patience_s:
                    yield member

    def _gradient_gaps(self) -> Iterator[Gap]:
        for waiting in self.passes.values():
            if waiting.gradients:
                members = [self.members[piece.member] for piece in waiting.pieces]
                yield Gap(
                    waiting.since,
                    [one for one in members if not one.out and one.name not in waiting.gradients],
                )

    # What is next.

    def restore(self) -> Restore:
        """Go back to where the round begins."""
        adapters = dict.fromkeys(one.adapter for one in self.members.values())
        return Restore(self.id, self.begin.round, list(adapters))

    def save(self, counted: Sequence[str]) -> Save:
        """End the round."""
        weights = self.gathering.weights([self.members[name] for name in counted])
        return Save(self.id, self.begin.round + 1, weights)

    def next(self) -> Work | None:
        """What to compute for the members, if anything is ready.

        What frees memory goes first; evaluation before training, which would leave it no gap.
        """
        return (
            self._drop()
            or self._step()
            or self._backward()
            or self._forward(self._evaluations(), trains=False)
            or self._forward(self._batches(), trains=True)
        )

    def _drop(self) -> DropPasses | None:
        if not self._dropped:
            return None
        numbers, self._dropped = self._dropped, []
        return DropPasses(self.id, numbers)

    def _step(self) -> TakeStep | None:
        members = self.gathering.steps(self.those_in)
        if not members:
            return None
        norms = {one.name: one.step.squared_norm for one in members if one.step is not None}
        return TakeStep(self.id, members[0].adapter, norms)

    def _backward(self) -> RunBackward | None:
        averages = self.gathering.averages
        for number, waiting in self.passes.items():
            needed = {p.member for p in waiting.pieces if not self.members[p.member].out}
            if needed and needed <= waiting.gradients.keys():
                del self.passes[number]
                return RunBackward(self.id, number, waiting.pieces, waiting.gradients, averages)
        return None

    def _evaluations(self) -> list[Piece]:
        """One batch of each member that evaluates."""
        return [next(iter(m.evaluations.values()))[0] for m in self.those_in if m.evaluations]

    def _batches(self) -> list[Piece]:
        chosen = self.gathering.forward(self.those_in)
        return [member.forwards.pop(micro)[0] for member, micro in chosen]

    def _forward(self, pieces: Sequence[Piece], *, trains: bool) -> RunForward | None:
        if not pieces:
            return None
        self._numbered += 1
        return RunForward(self.id, self._numbered, pieces, trains)
