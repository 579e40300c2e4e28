"""Which node holds each session, and which client spoke for it last. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from itertools import takewhile
from typing import Final

from broker.limits import Held

_NOTHING: Final = Held()


@dataclass(slots=True)
class Route:
    """Where one session's frames go. `accepted` once its node has said that it holds it."""

    node: bytes
    client: bytes | None
    # The id of its client's key; where there are no keys, a name that nobody is asked for.
    owner: bytes
    _: KW_ONLY
    accepted: bool = False
    # KV positions set aside for it, where that is known.
    positions: int = 0
    # Of a session that a stage has at the next one: whom it is for in the end.
    onward_for: bytes | None = None
    # Of one that goes on at a next stage: the session there.
    onward: bytes = b""
    # The request that it was opened for, if that is known.
    trace: bytes | None = None

    @property
    def served(self) -> bytes:
        """Whom the session is for in the end."""
        return self.owner if self.onward_for is None else self.onward_for


class Routes:
    """The routes of all sessions, and those of each node."""

    def __init__(self) -> None:
        self._routes: dict[bytes, Route] = {}
        self._of_node: dict[bytes, dict[bytes, Route]] = {}
        self._of_owner: dict[bytes, Held] = {}
        # When nodes were asked for sessions that they have not answered for, the longest ago first.
        self._asked_at: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self._routes)

    def get(self, session: bytes) -> Route | None:
        """The route of a session, if there is one."""
        return self._routes.get(session)

    def held_by(self, owner: bytes) -> Held:
        """What the sessions of a client take."""
        return self._of_owner.get(owner, _NOTHING)

    def begin(self, session: bytes, route: Route, now: float) -> None:
        """A session is sent to a node."""
        self._put(session, route)
        self._asked_at[session] = now

    def asked_again(self, session: bytes, client: bytes, now: float) -> None:
        """A client asks once more for a session that has a route."""
        self._routes[session].client = client
        if self._asked_at.pop(session, None) is not None:
            self._asked_at[session] = now

    def accepted(self, session: bytes) -> None:
        """Its node holds a session."""
        self._routes[session].accepted = True
        self._asked_at.pop(session, None)

    def unanswered(self, since: float) -> list[bytes]:
        """The sessions that nodes were last asked for before that, and have not answered for."""
        return list(takewhile(lambda one: self._asked_at[one] < since, self._asked_at))

    def registered(
        self, node: bytes, held: Mapping[bytes, bytes], *, keyed: bool
    ) -> list[tuple[bytes, Route]]:
        """A node holds these sessions, each with its owner, and none that it accepted before.

        What is known of a session's client stands, unless it is another than the owner; without
        keys, owners are names that say nothing. Returns the sessions that were sent elsewhere
        meanwhile, with the routes that they had.
        """
        gone = [
            session
            for session, route in self._of_node.get(node, {}).items()
            if route.accepted and session not in held
        ]
        for session in gone:
            self.end(session)
        moved = []
        for session, owner in held.items():
            known = self._routes.get(session)
            if known is not None and known.node != node:
                moved.append((session, known))
            if known is None:
                route = Route(node, None, owner, accepted=True)
            elif keyed and known.owner != owner:
                route = Route(node, None, owner, accepted=True, positions=known.positions)
            else:
                route = replace(known, node=node, owner=owner, accepted=True)
            self._put(session, route)
        return moved

    def _put(self, session: bytes, route: Route) -> None:
        if session in self._routes:
            self.end(session)
        self._routes[session] = route
        self._of_node.setdefault(route.node, {})[session] = route
        held = self._of_owner.setdefault(route.owner, Held())
        held.sessions += 1
        held.positions += route.positions

    def end(self, session: bytes) -> Route:
        """Forget a session."""
        route = self._routes.pop(session)
        self._asked_at.pop(session, None)
        self._release(route)
        of_node = self._of_node[route.node]
        del of_node[session]
        if not of_node:
            del self._of_node[route.node]
        return route

    def end_all_of(self, node: bytes) -> list[tuple[bytes, Route]]:
        """Forget the sessions of a node: these."""
        lost = self._of_node.pop(node, {})
        for session, route in lost.items():
            del self._routes[session]
            self._asked_at.pop(session, None)
            self._release(route)
        return list(lost.items())

    def _release(self, route: Route) -> None:
        held = self._of_owner[route.owner]
        held.sessions -= 1
        held.positions -= route.positions
        if not held.sessions:
            del self._of_owner[route.owner]

    def accepted_by(self, node: bytes) -> int:
        """Sessions that a node has said that it holds."""
        return sum(route.accepted for route in self._of_node.get(node, {}).values())

    def of_client(self, client: bytes) -> list[bytes]:
        """The sessions that a client spoke for last."""
        return [session for session, route in self._routes.items() if route.client == client]

    def of_owners(self, owners: Collection[bytes]) -> list[bytes]:
        """The sessions that belong to these."""
        return [session for session, route in self._routes.items() if route.owner in owners]

    def clients(self) -> Iterable[bytes]:
        """All that speak for a session, each once, in the order of their sessions."""
        clients = dict.fromkeys(route.client for route in self._routes.values())
        return [client for client in clients if client is not None]
