"""Who waits for room, and whose turn it is when there is some. Pure.

Whoever asks again a moment after room was made finds it taken by who asked in that moment: a
client that just closed a session would win each time. So the broker keeps the requests of those
that wait, for a while each, and serves them itself when there is room. Nobody is waited for who is
not there, so room does not stand idle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Final, Generic, TypeVar

A = TypeVar("A")

# A request is kept this long; then its client is told to ask again soon, and keeps its turn if it
# does so within the grace.
HOLD_S: Final = 2.0
GRACE_S: Final = 1.0
# Who has waited this long and does not fit is no longer passed by those that do.
PATIENCE_S: Final = 2.0


@dataclass(slots=True)
class Place(Generic[A]):
    """One session that waits: its client, its request, and since when."""

    session: bytes
    client: bytes
    ask: A
    number: int
    asked_at: float
    held: bool
    until: float


class Line(Generic[A]):
    """The sessions that wait; at most `most`, and at most `most_a_client` of one client.

    It is the turn of the client that was given nothing for longest while it waited. So while one
    waits, each other client comes before it once at most.
    """

    def __init__(self, most: int = 256, most_a_client: int = 16) -> None:
        self._most = most
        self._most_a_client = most_a_client
        self._places: dict[bytes, Place[A]] = {}
        # Asks and grants are numbered; the last grant of each client that waits.
        self._numbers = count(1)
        self._served: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, session: object) -> bool:
        return session in self._places

    def join(self, session: bytes, client: bytes, ask: A, now: float) -> bool:
        """Keep a request, in the place that its session had before; False if there is none."""
        place = self._places.get(session)
        if place is None:
            of_client = sum(one.client == client for one in self._places.values())
            if len(self) >= self._most or of_client >= self._most_a_client:
                return False
            place = Place(session, client, ask, next(self._numbers), now, held=False, until=now)
            self._places[session] = place
        place.ask = ask
        if not place.held:
            place.held, place.until = True, now + HOLD_S
        return True

    def step_out(self, session: bytes, now: float) -> None:
        """The client was told to ask again soon."""
        place = self._places[session]
        place.held, place.until = False, now + GRACE_S

    def in_turn(self) -> list[Place[A]]:
        """Those whose request is held, the one whose turn it is first."""
        held = [place for place in self._places.values() if place.held]
        return sorted(held, key=self._since)

    def _since(self, place: Place[A]) -> int:
        return max(place.number, self._served.get(place.client, 0))

    def granted(self, session: bytes) -> None:
        """The session was given room, whether it waited or not."""
        if session in self._places:
            self._served[self._places[session].client] = next(self._numbers)
            self.leave(session)

    def leave(self, session: bytes) -> None:
        """The session waits no longer, if it did."""
        place = self._places.pop(session, None)
        if place is not None and all(o.client != place.client for o in self._places.values()):
            self._served.pop(place.client, None)

    @property
    def asks(self) -> list[A]:
        """The requests of all."""
        return [place.ask for place in self._places.values()]

    def ask_of(self, session: bytes) -> A | None:
        """The request of the session, if it waits."""
        place = self._places.get(session)
        return None if place is None else place.ask

    def leave_all(self, unwanted: Callable[[A], bool]) -> None:
        """No session whose request is `unwanted` waits any longer."""
        for session in [i for i, place in self._places.items() if unwanted(place.ask)]:
            self.leave(session)

    def overdue(self, now: float) -> list[A]:
        """Step out for requests that were held long enough: these; drop who did not come back."""
        over = [place for place in self._places.values() if place.until <= now]
        for place in over:
            if place.held:
                self.step_out(place.session, now)
            else:
                self.leave(place.session)
        return [place.ask for place in over if place.session in self._places]
