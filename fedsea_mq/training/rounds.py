"""The aggregator's rounds: who trains, whose updates count, when a round closes.

A state machine without clock, socket or tensor: `now` is an argument, in seconds of any monotonic
clock, and what is to be done comes back as events. It knows who answered, not what with.

    WAITING --enough clients--> TRAINING --closed--> AGGREGATING --aggregated--> TRAINING ...
                                   |                     |                          or FINISHED
                                   +--- too few / void: the round is repeated ------> or FAILED

A round closes when the quorum of those sampled has answered; at its deadline with at least
`min_updates`; or before it, with at least as many, once nobody who is still there owes an answer.
With fewer at the deadline it is repeated as another attempt, from the same adapters, and nothing of
the failed attempt counts. Clients that vanished may come back and answer until the deadline. Those
that are excused cannot: when too few others are left to answer, the round is repeated at once.

Sampled are those whose last turn is longest ago (failed attempts count as turns). Among equals, a
hash of seed, round, attempt and client decides. So every client gets its turn, slow or vanishing
ones cannot hold up one round for ever, and a run from a checkpoint, with the same clients, samples
as the undisturbed one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from hashlib import blake2b

from fedsea_mq.errors import LimitExceeded
from fedsea_mq.training.round_plan import MAX_CLIENTS, RoundId, RoundPlan

Client = bytes


class Phase(Enum):
    """What the rounds are doing."""

    WAITING = auto()
    TRAINING = auto()
    AGGREGATING = auto()
    FINISHED = auto()
    FAILED = auto()


class Verdict(Enum):
    """What became of an update, or of an aggregate."""

    COUNTED = auto()
    DUPLICATE = auto()
    # Refusals:
    LATE = auto()  # its attempt is closed, or it was excused; it is sampled for later ones
    NOT_ASKED = auto()  # the client was not sampled, or the round has not begun
    NOT_JOINED = auto()  # the client must join first; if its round is open then, it may answer


@dataclass(frozen=True, slots=True)
class Started:
    """These clients train `local_steps` from the present adapters, until `deadline`."""

    round: RoundId
    clients: tuple[Client, ...]
    local_steps: int
    deadline: float


@dataclass(frozen=True, slots=True)
class Closed:
    """The updates of `counted` are to be aggregated, until `deadline`; `missing` did not answer."""

    round: RoundId
    counted: tuple[Client, ...]
    missing: tuple[Client, ...]
    deadline: float


@dataclass(frozen=True, slots=True)
class Repeated:
    """The attempt came to nothing: its updates are void. Another follows."""

    round: RoundId


@dataclass(frozen=True, slots=True)
class Finished:
    """All rounds of the plan are done."""


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The last attempt of a round came to nothing as well."""

    round: RoundId


Event = Started | Closed | Repeated | Finished | GaveUp


@dataclass(frozen=True, slots=True)
class Progress:
    """What a checkpoint keeps: rounds done, and when each client last had a turn."""

    done: int = 0
    turns: int = 0
    last_turn: Mapping[Client, int] = field(default_factory=dict)


class Rounds:
    """The rounds of one run. See the module's words for the rules."""

    def __init__(self, plan: RoundPlan, progress: Progress | None = None) -> None:
        """A new run, or one that goes on after `progress`: its open round begins again."""
        progress = progress or Progress()
        self.plan = plan
        self.phase = Phase.WAITING if progress.done < plan.rounds else Phase.FINISHED
        self._progress = progress
        self._joined: set[Client] = set()
        self._turns = progress.turns
        self._last_turn = dict(progress.last_turn)
        self._id = RoundId(progress.done)
        self._started: Started | None = None
        self._counted: dict[Client, None] = {}
        self._excused: set[Client] = set()
        self._deadline: float | None = None

    @property
    def progress(self) -> Progress:
        """To be saved with the adapters each time that a round was aggregated.

        It is as of then: the round that is open is not in it.
        """
        return self._progress

    @property
    def deadline(self) -> float | None:
        """When `tick` must be called at the latest; None while nothing is timed."""
        return self._deadline

    @property
    def owing(self) -> frozenset[Client]:
        """Clients that are there, were sampled, and can answer but have not."""
        if self.phase is not Phase.TRAINING or self._started is None:
            return frozenset()
        silent = frozenset(self._started.clients) - self._counted.keys() - self._excused
        return silent & self._joined

    def task(self, client: Client) -> Started | None:
        """What the client should be training now; for one that starts again or asks again."""
        return self._started if client in self.owing else None

    def join(self, client: Client, now: float) -> list[Event]:
        """A client is there, or there again.

        Raises:
            LimitExceeded: there are `MAX_CLIENTS` already.
        """
        events = self.tick(now)
        if client not in self._joined and len(self._joined) >= MAX_CLIENTS:
            raise LimitExceeded(f"{MAX_CLIENTS} clients have joined, which is the most")
        self._joined.add(client)
        return events + self._begin(now)

    def leave(self, client: Client, now: float) -> list[Event]:
        """A client is gone."""
        events = self.tick(now)
        self._joined.discard(client)
        return events + self._close_if_done(now)

    def update(self, client: Client, round_id: RoundId, now: float) -> tuple[Verdict, list[Event]]:
        """A client hands in its update of a round. It is counted only if the verdict is COUNTED."""
        events = self.tick(now)
        verdict = self._judge(client, round_id)
        if verdict is not Verdict.COUNTED:
            return verdict, events
        self._counted[client] = None
        return verdict, events + self._close_if_done(now)

    def aggregated(self, round_id: RoundId, now: float) -> tuple[Verdict, list[Event]]:
        """The closed round's aggregate is there. It is used only if the verdict is COUNTED."""
        events = self.tick(now)
        if self.phase is not Phase.AGGREGATING or round_id != self._id:
            return self._past(round_id), events
        self._id = RoundId(self._id.number + 1)
        self._progress = Progress(self._id.number, self._turns, dict(self._last_turn))
        done = self._id.number >= self.plan.rounds
        self._rest(Phase.FINISHED if done else Phase.WAITING)
        return Verdict.COUNTED, events + ([Finished()] if done else self._begin(now))

    def excuse(self, client: Client, round_id: RoundId, now: float) -> list[Event]:
        """A client cannot answer in this attempt any more, wherever it is.

        Without effect if it has answered, or was not sampled.
        """
        events = self.tick(now)
        if self._judge_attempt(client, round_id) is not Verdict.COUNTED:
            return events
        assert self._started is not None
        self._excused.add(client)
        if len(self._started.clients) - len(self._excused) < self.plan.min_updates:
            return events + self._repeat(now)
        return events + self._close_if_done(now)

    def void(self, round_id: RoundId, now: float) -> list[Event]:
        """Nothing can come of this attempt, open or closed, any more: the round is repeated."""
        events = self.tick(now)
        if self._started is not None and round_id == self._id:
            events += self._repeat(now)
        return events

    def tick(self, now: float) -> list[Event]:
        """What is due by now. Every other call does this first."""
        if self._deadline is None or now < self._deadline:
            return []
        if self.phase is Phase.TRAINING and len(self._counted) >= self.plan.min_updates:
            return self._close(now)
        return self._repeat(now)

    def _judge(self, client: Client, round_id: RoundId) -> Verdict:
        if client not in self._joined:
            return Verdict.NOT_JOINED
        return self._judge_attempt(client, round_id)

    def _judge_attempt(self, client: Client, round_id: RoundId) -> Verdict:
        if round_id != self._id or self._started is None:
            return self._past(round_id)
        if client in self._counted:
            return Verdict.DUPLICATE
        if client not in self._started.clients:
            return Verdict.NOT_ASKED
        open_to_it = self.phase is Phase.TRAINING and client not in self._excused
        return Verdict.COUNTED if open_to_it else Verdict.LATE

    def _past(self, round_id: RoundId) -> Verdict:
        return Verdict.LATE if round_id < self._id else Verdict.NOT_ASKED

    def _begin(self, now: float) -> list[Event]:
        if self.phase is not Phase.WAITING or len(self._joined) < self.plan.min_clients:
            return []
        clients = self._sample()
        self._turns += 1
        for client in clients:
            self._last_turn[client] = self._turns
        self._forget()
        self._deadline = now + self.plan.training_s
        self._started = Started(self._id, clients, self.plan.local_steps, self._deadline)
        self.phase = Phase.TRAINING
        return [self._started]

    def _sample(self) -> tuple[Client, ...]:
        said = f"{self.plan.seed}/{self._id.number}/{self._id.attempt}/".encode()

        def turn(client: Client) -> tuple[int, bytes, Client]:
            shuffled = blake2b(said + client, digest_size=16).digest()
            return self._last_turn.get(client, 0), shuffled, client

        return tuple(sorted(self._joined, key=turn)[: self.plan.sampled_of(len(self._joined))])

    def _forget(self) -> None:
        """Clients that left long ago are not remembered without bound."""
        gone = self._last_turn.keys() - self._joined
        excess = len(gone) - MAX_CLIENTS
        for client in sorted(gone, key=lambda one: (self._last_turn[one], one))[: max(0, excess)]:
            del self._last_turn[client]

    def _close_if_done(self, now: float) -> list[Event]:
        if self.phase is not Phase.TRAINING or self._started is None:
            return []
        answers, sampled = len(self._counted), len(self._started.clients)
        nobody_owes = answers >= self.plan.min_updates and not self.owing
        return self._close(now) if nobody_owes or answers >= self.plan.enough_of(sampled) else []

    def _close(self, now: float) -> list[Event]:
        assert self._started is not None
        self.phase = Phase.AGGREGATING
        self._deadline = now + self.plan.aggregation_s
        counted = tuple(client for client in self._started.clients if client in self._counted)
        missing = tuple(client for client in self._started.clients if client not in self._counted)
        return [Closed(self._id, counted, missing, self._deadline)]

    def _repeat(self, now: float) -> list[Event]:
        failed = self._id
        if failed.attempt + 1 >= self.plan.max_attempts:
            self._rest(Phase.FAILED)
            return [GaveUp(failed)]
        self._id = RoundId(failed.number, failed.attempt + 1)
        self._rest(Phase.WAITING)
        return [Repeated(failed), *self._begin(now)]

    def _rest(self, phase: Phase) -> None:
        self.phase, self._started, self._deadline = phase, None, None
        self._counted.clear()
        self._excused.clear()
