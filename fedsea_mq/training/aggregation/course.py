"""The course of a run: each attempt at a round on its way through the parties.

    begin at the trunk -> tasks -> updates, each checked, then counted, then added -> mean (in a
    secure run by stages) -> end at the trunk -> saved -> the next one begins

`training.rounds` decides who trains, what counts and when an attempt is over. What comes for
another attempt than the present one changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from fedsea_mq.errors import TooFewClients
from fedsea_mq.protocol.training_messages import ATTEMPT_BYTES, Fate
from fedsea_mq.training.aggregation.actions import (
    Action,
    Average,
    Averaged,
    BeginRoundAtTrunk,
    EndRoundAtTrunk,
    Report,
    Save,
)
from fedsea_mq.training.aggregation.attempt import Attempt, Said
from fedsea_mq.training.aggregation.reports import (
    RoundBegun,
    RoundClosed,
    RoundDone,
    RoundRepeated,
    RunFinished,
    RunGivenUp,
)
from fedsea_mq.training.aggregation.secure_stages import SecureRules, SecureStages
from fedsea_mq.training.rounds import (
    Closed,
    Event,
    Finished,
    GaveUp,
    Phase,
    Repeated,
    Rounds,
    Started,
    Verdict,
)


class RunCourse:
    """The rounds of one run, from `begin` until it is `over`."""

    def __init__(
        self, rounds: Rounds, secure: SecureRules | None, entropy: Callable[[int], bytes]
    ) -> None:
        """`entropy` draws the ids of attempts."""
        self.rounds = rounds
        self.attempt: Attempt | None = None
        # The shared adapters before the present round, as they travel.
        self.shared = b""
        # The attempt that they came out of; zeros before the first round.
        self.ended = bytes(ATTEMPT_BYTES)
        self._before: Attempt | None = None
        self._secure = secure
        self._entropy = entropy
        # While the state before a round is being saved, the round does not begin.
        self._saving = False

    @property
    def over(self) -> bool:
        """Whether the run has finished, and all is written, or was given up."""
        finished = self.rounds.phase is Phase.FINISHED and not self._saving
        return finished or self.rounds.phase is Phase.FAILED

    def begin(self, shared: bytes, attempt: bytes) -> list[Action]:
        """Go on from these adapters, of this attempt; called once, before anything else."""
        self.shared, self.ended = shared, attempt
        return [self._save(None)]

    def _save(self, attempt: Attempt | None) -> Save:
        self._saving = True
        last = self.rounds.phase is Phase.FINISHED
        return Save(None if attempt is None else attempt.id, self.rounds.progress, last)

    def saved(self) -> list[Action]:
        """The state before the present round is on disk."""
        self._saving = False
        if self.rounds.phase is Phase.FINISHED:
            return [Report(RunFinished(self.rounds.progress.done))]
        return self._begin_at_trunk()

    def present(self, attempt: bytes) -> Attempt | None:
        """The present attempt, if it is this one."""
        return self.attempt if self.attempt is not None and self.attempt.id == attempt else None

    def stages(self, attempt: bytes) -> SecureStages | None:
        """The secure stages of the present attempt, or of the one before it if they were done."""
        if (present := self.present(attempt)) is not None:
            return present.secure
        before = self._before
        if before is None or before.id != attempt or before.secure is None:
            return None
        return before.secure if before.secure.done else None

    def join(self, member: str, now: float) -> list[Action]:
        """A member is there. Raises `LimitExceeded`."""
        events = self.rounds.join(member.encode(), now)
        if self.attempt is not None and self.attempt.secure is not None:
            self.attempt.secure.back(member)
        return self._follow(events, now)

    def leave(self, member: str, now: float) -> list[Action]:
        """A member's session is over."""
        if self.attempt is not None and self.attempt.secure is not None:
            self.attempt.secure.lose(member)
        return self._follow(self.rounds.leave(member.encode(), now), now)

    def excuse(self, member: str, reason: str, now: float) -> list[Action]:
        """A member cannot go on in the present attempt."""
        attempt = self.attempt
        if attempt is None:
            return []
        if attempt.secure is not None:
            attempt.secure.decline(member)
        events = self.rounds.excuse(member.encode(), attempt.round, now)
        return self._follow(events, now, f"{member} cannot go on: {reason}")

    def owes(self, member: str) -> Attempt | None:
        """The attempt that a member should be training in, once the trunk is ready for it."""
        attempt = self.attempt
        if attempt is None or not attempt.begun or member in attempt.checking:
            return None
        return attempt if member.encode() in self.rounds.owing else None

    def fate(self, member: str, attempt: bytes) -> Fate | None:
        """What becomes of an update whatever it holds; None if it may count."""
        for known in (self.attempt, self._before):
            if known is not None and known.id == attempt and member in known.updates:
                return Fate.DUPLICATE
        present = self.present(attempt)
        may_count = present is not None and member.encode() in self.rounds.owing
        return None if may_count else Fate.LATE

    def count(
        self, member: str, attempt: Attempt, said: Said, now: float
    ) -> tuple[bool, list[Action]]:
        """Count an update of the present attempt; whether it does, and what follows."""
        verdict, events = self.rounds.update(member.encode(), attempt.round, now)
        if verdict is Verdict.COUNTED:
            attempt.updates[member] = said
        return verdict is Verdict.COUNTED, self._follow(events, now)

    def trunk_began(self, attempt: bytes) -> list[Action]:
        """The trunk stands where this attempt begins."""
        present = self.present(attempt)
        if present is None:
            return []
        present.begun = True
        of = present.round
        return [
            Report(RoundBegun(of.number, of.attempt, present.members, present.local_steps)),
        ]

    def trunk_ended(self, attempt: bytes, now: float) -> list[Action]:
        """The trunk has averaged and saved: the round is done, and the next one begins."""
        present = self.present(attempt)
        if present is None:
            return []
        verdict, events = self.rounds.aggregated(present.round, now)
        actions: list[Action] = []
        if verdict is Verdict.COUNTED:
            of, self.shared, self.ended = present.round, present.result, present.id
            actions = [
                Report(RoundDone(of.number, of.attempt, present.counted)),
                self._save(present),
            ]
            self._end_attempt()
        return actions + self._follow(events, now)

    def void(self, attempt: bytes, reason: str, now: float) -> list[Action]:
        """Nothing can come of this attempt."""
        present = self.present(attempt)
        if present is None:
            return []
        return self._follow(self.rounds.void(present.round, now), now, reason)

    def trunk_lost(self, now: float) -> list[Action]:
        """The trunk, or the session with it, is gone, and what it did in the present attempt."""
        if self.attempt is None or not self.attempt.begun:
            return []
        return self.void(self.attempt.id, "the trunk was lost", now)

    def averaged(self, attempt: bytes, result: Averaged) -> list[Action]:
        """The next shared adapters are made; they are not taken before the trunk is there, too."""
        present = self.present(attempt)
        if present is None:
            return []
        present.result = result.vector
        if present.secure is not None:
            present.counted = tuple(present.secure.members[n - 1] for n in result.survivors)
        return [EndRoundAtTrunk(present.end)]

    def tick(self, now: float) -> list[Action]:
        """What is due by now; every call but the results' does this first."""
        actions = self._follow(self.rounds.tick(now), now)
        attempt = self.attempt
        if attempt is None or attempt.secure is None:
            return actions
        try:
            if attempt.secure.advance(now):
                actions.append(Average(attempt.id, attempt.secure.server))
        except TooFewClients as error:
            actions += self.void(attempt.id, str(error), now)
        return actions

    def _follow(
        self, events: list[Event], now: float, reason: str = "too few answers by the deadline"
    ) -> list[Action]:
        """What the rounds' events mean; `reason` is that of a repeat."""
        actions: list[Action] = []
        for event in events:
            match event:
                case Started():
                    actions += self._start(event)
                case Closed():
                    actions += self._close(event, now)
                case Repeated(of):
                    self._end_attempt()
                    actions.append(Report(RoundRepeated(of.number, of.attempt, reason)))
                case GaveUp(of):
                    self._end_attempt()
                    actions.append(Report(RunGivenUp(of.number, of.attempt, reason)))
                case Finished():
                    pass  # the run is over once it is saved
        return actions

    def _start(self, started: Started) -> list[Action]:
        # By name: members who take turns do so in the same order in each attempt.
        members = tuple(sorted(client.decode() for client in started.clients))
        drawn = self._entropy(ATTEMPT_BYTES)
        self.attempt = Attempt(drawn, started.round, members, started.local_steps)
        return self._begin_at_trunk()

    def _begin_at_trunk(self) -> list[Action]:
        if self._saving or self.attempt is None:
            return []
        return [BeginRoundAtTrunk(self.attempt.begin)]

    def _close(self, closed: Closed, now: float) -> list[Action]:
        attempt, of = self.attempt, closed.round
        assert attempt is not None
        attempt.counted = tuple(sorted(client.decode() for client in closed.counted))
        missing = tuple(sorted(client.decode() for client in closed.missing))
        report = Report(RoundClosed(of.number, of.attempt, attempt.loss, attempt.counted, missing))
        if self._secure is None:
            return [report, Average(attempt.id, None)]
        try:
            terms = self._secure.terms(of, attempt.id, len(attempt.counted))
        except TooFewClients as error:
            return [report, *self.void(attempt.id, str(error), now)]
        attempt.secure = SecureStages(terms, self._secure, attempt.counted, now)
        return [report]

    def _end_attempt(self) -> None:
        self._before, self.attempt = self.attempt, None
