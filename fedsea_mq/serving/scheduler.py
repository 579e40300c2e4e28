"""Which waiting work goes into the next step. Pure: no clock, socket or tensor.

Iteration-level batching: every step is planned anew from all that waits, in three rules.

1. Short work (decodes, speculative spans) goes first; long work (prefill, training) fills what is
   left, a chunk at a time, up to the positions that the caller allows for it, and is never shut
   out: a part of the budget is kept for it.
2. Among clients, positions are divided max-min fairly: a client with many sessions gets no more
   than one with few, while there is not enough for all; what cannot be divided evenly goes to
   whom the scheduler has given least so far.
3. Within a client, more urgent work goes before less urgent, then the earlier deadline, then the
   order of arrival; work that has waited longer than `patience_s` counts as the most urgent, so
   nothing starves. A client names its own urgency, so it weighs against its own work alone.

Work of one session is never reordered.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Generic, Protocol, TypeVar

from fedsea_mq.errors import Busy
from fedsea_mq.serving.fair_share import fair_shares

# The positions of a speculative span at most; anything longer is long work.
SHORT_POSITIONS: Final = 16
# Long work gets at least this part of a step in which it waits.
_KEPT_FOR_LONG: Final = 1 / 8
# However many clients bring long work, it does not weigh more than this against others' short work.
_MOST_CROWDED: Final = 4.0
# Deadlines of work already done that are kept before they are swept out.
_SPENT_DEADLINES: Final = 1024


class Urgency(IntEnum):
    """What goes first when there is not room for all of a client's work."""

    INTERACTIVE = 0
    NORMAL = 1
    BACKGROUND = 2


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose work it is. Fairness is between clients, order within a session."""

    client: bytes
    session: bytes
    urgency: Urgency = Urgency.NORMAL


class Demand(Protocol):
    """Work that costs some positions of one or more steps."""

    @property
    def owner(self) -> Owner:
        """Whose it is."""
        ...

    @property
    def positions(self) -> int:
        """All positions of the work, at least 1."""
        ...

    @property
    def deadline(self) -> float:
        """When its result is of no more use; infinity if it always is."""
        ...


W = TypeVar("W", bound=Demand)


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Bounds of a step and of what may wait."""

    positions: int
    max_waiting: int = 16_384
    patience_s: float = 1.0
    retry_after_s: float = 0.1


@dataclass(frozen=True, slots=True)
class Share(Generic[W]):
    """What a step takes of a piece of work: `count` positions from its `start` on."""

    work: W
    start: int
    count: int

    @property
    def completes(self) -> bool:
        """Whether the work is done with this share."""
        return self.start + self.count == self.work.positions


@dataclass(slots=True)
class _Waiting(Generic[W]):
    work: W
    since: float
    number: int
    done: int = 0

    @property
    def left(self) -> int:
        return self.work.positions - self.done

    @property
    def is_short(self) -> bool:
        return self.work.positions <= SHORT_POSITIONS


@dataclass(slots=True)
class _Plan(Generic[W]):
    """A step as it is put together."""

    room: int
    taken: list[tuple[_Waiting[W], Share[W]]] = field(default_factory=list)

    def take(self, waiting: _Waiting[W], count: int) -> None:
        self.taken.append((waiting, Share(waiting.work, waiting.done, count)))
        waiting.done += count
        self.room -= count


class Scheduler(Generic[W]):
    """What waits, and the plan of each step."""

    def __init__(self, limits: StepLimits) -> None:
        self._limits = limits
        self._sessions: dict[bytes, list[_Waiting[W]]] = {}
        self._arrivals = 0
        self._count = 0
        # Pieces of work that wait, by client.
        self._present: Counter[bytes] = Counter()
        # Positions given to each client that is here or ahead of who is, and the least of them.
        self._served: dict[bytes, int] = {}
        self._floor = 0
        # The earliest deadline on top, by number, and what still waits with one. The numbers of
        # what is done meanwhile are dropped when they come up: they hold on to nothing.
        self._deadlines: list[tuple[float, int]] = []
        self._with_deadline: dict[int, _Waiting[W]] = {}

    def __len__(self) -> int:
        return self._count

    @property
    def sessions(self) -> Collection[bytes]:
        """The sessions that have work waiting."""
        return self._sessions.keys()

    def add(self, work: W, now: float) -> None:
        """Queue work.

        Raises:
            Busy: as much waits as may; come again later.
        """
        if len(self) >= self._limits.max_waiting:
            raise Busy("as much work waits as may", self._limits.retry_after_s)
        self._arrive(work.owner.client)
        self._arrivals += 1
        waiting = _Waiting(work, now, self._arrivals)
        self._sessions.setdefault(work.owner.session, []).append(waiting)
        if work.deadline != math.inf:
            self._watch(waiting)

    def _watch(self, waiting: _Waiting[W]) -> None:
        if len(self._deadlines) > 2 * self._count + _SPENT_DEADLINES:
            self._deadlines = [
                entry for entry in self._deadlines if entry[1] in self._with_deadline
            ]
            heapq.heapify(self._deadlines)
        self._with_deadline[waiting.number] = waiting
        heapq.heappush(self._deadlines, (waiting.work.deadline, waiting.number))

    def _arrive(self, client: bytes) -> None:
        """Being away earns nothing: who comes (back) is level with the least served."""
        if client not in self._present and self._floor:
            self._served[client] = max(self._floor, self._served.get(client, 0))
        self._present[client] += 1
        self._count += 1

    def remove(self, unwanted: Callable[[W], bool]) -> list[W]:
        """Take out all waiting work that is `unwanted`, begun or not, and return it."""
        removed: list[W] = []
        for queue in list(self._sessions.values()):
            for waiting in [waiting for waiting in queue if unwanted(waiting.work)]:
                removed.append(waiting.work)
                self._let_go(waiting)
        return removed

    def discard(self, work: W) -> None:
        """Take out this very piece of work, if it waits."""
        for waiting in self._sessions.get(work.owner.session, ()):
            if waiting.work is work:
                self._let_go(waiting)
                return

    def remove_session(self, session: bytes) -> list[W]:
        """Take out all work of a session, and return it."""
        waits = list(self._sessions.get(session, ()))
        for waiting in waits:
            self._let_go(waiting)
        return [waiting.work for waiting in waits]

    def expire(self, now: float) -> list[W]:
        """Take out the work whose deadline has passed."""
        late: list[W] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, number = heapq.heappop(self._deadlines)
            waiting = self._with_deadline.get(number)
            if waiting is not None:
                late.append(waiting.work)
                self._let_go(waiting)
        return late

    def plan(
        self,
        now: float,
        long_beside: Callable[[int, float], int] | None = None,
        most: int | None = None,
    ) -> list[Share[W]]:
        """The next step; empty if nothing waits.

        Of short work it takes what `most` sessions have, those that came first, if there is room
        for all: else room is shared out. `long_beside` bounds what long work gets beside so many
        positions of short work, given how many times as many want it (`_crowding`); without short
        work the whole step is open to it.
        """
        ready = [queue[0] for queue in self._sessions.values()]
        budget = self._limits.positions
        # A step of one position cannot be shared between the two: all work takes turns.
        short = [waiting for waiting in ready if waiting.is_short or budget == 1]
        long = [waiting for waiting in ready if not waiting.is_short and budget > 1]
        kept = max(1, int(budget * _KEPT_FOR_LONG)) if long else 0
        plan: _Plan[W] = _Plan(budget - kept)
        if most is not None and sum(waiting.left for waiting in short) <= plan.room:
            short = sorted(short, key=lambda waiting: waiting.number)[:most]
        self._fill(plan, short, now)
        plan.room += kept
        taken = budget - plan.room
        if taken and long_beside is not None:
            plan.room = min(plan.room, max(1, long_beside(taken, _crowding(short, long))))
        self._fill(plan, long, now)
        self._settle(plan)
        return [share for _, share in plan.taken]

    def _fill(self, plan: _Plan[W], ready: Sequence[_Waiting[W]], now: float) -> None:
        if sum(waiting.left for waiting in ready) <= plan.room:
            for waiting in ready:
                plan.take(waiting, waiting.left)
            return
        self._share_out(plan, ready, now)

    def _share_out(self, plan: _Plan[W], ready: Sequence[_Waiting[W]], now: float) -> None:
        """Divide the room that is left among the clients of `ready`."""
        by_client: dict[bytes, list[_Waiting[W]]] = {}
        for waiting in ready:
            by_client.setdefault(waiting.work.owner.client, []).append(waiting)
        wanted = {client: sum(w.left for w in waits) for client, waits in by_client.items()}
        owed = {client: -self._served.get(client, 0) for client in wanted}
        for client, share in fair_shares(wanted, plan.room, owed).items():
            left = share
            for waiting in sorted(by_client[client], key=lambda one: self._turn(one, now)):
                count = min(left, waiting.left)
                if count:
                    plan.take(waiting, count)
                    left -= count

    def _turn(self, waiting: _Waiting[W], now: float) -> tuple[int, float, int]:
        owner, impatient = waiting.work.owner, now - waiting.since > self._limits.patience_s
        urgency = Urgency.INTERACTIVE if impatient else owner.urgency
        return (urgency, waiting.work.deadline, waiting.number)

    def _settle(self, plan: _Plan[W]) -> None:
        """Book what the step gives to whom, and let go of what it completes."""
        for waiting, share in plan.taken:
            client = share.work.owner.client
            self._served[client] = self._served.get(client, 0) + share.count
            if share.completes:
                self._let_go(waiting)
        # Nobody is ahead of an empty queue; whoever is away and not ahead starts level anyway.
        served = self._served
        self._floor = min((served.get(client, 0) for client in self._present), default=0)
        self._served = {
            client: given
            for client, given in served.items()
            if self._present and (client in self._present or given > self._floor)
        }

    def _let_go(self, waiting: _Waiting[W]) -> None:
        owner = waiting.work.owner
        queue = self._sessions[owner.session]
        queue.remove(waiting)
        self._with_deadline.pop(waiting.number, None)
        if not queue:
            del self._sessions[owner.session]
        self._count -= 1
        self._present[owner.client] -= 1
        if not self._present[owner.client]:
            del self._present[owner.client]


def _crowding(short: Sequence[_Waiting[W]], long: Sequence[_Waiting[W]]) -> float:
    """How many times as many want long work done as want short work done, at least 1.

    Clients are counted, or a client with many prompts could keep the others' answers waiting as
    long as it liked. What is one client's alone keeps nobody else waiting: its pieces are counted.
    """
    answering, prompting = _clients(short), _clients(long)
    if len(answering | prompting) == 1:
        return max(1.0, len(long) / len(short))
    return min(max(1.0, len(prompting) / len(answering)), _MOST_CROWDED)


def _clients(waits: Sequence[_Waiting[W]]) -> set[bytes]:
    return {waiting.work.owner.client for waiting in waits}
