"""What the broker knows, and what it says when a session begins, moves or ends. Pure.

It keeps nothing that nodes' registrations do not bring back: which node holds which session, whose
it is, and from which connection that client spoke last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from broker.admission import Admission, Ask, Verdict
from broker.events import OnEvent, SessionOver, SessionPlaced, SessionRefused, unwatched
from broker.limits import NO_LIMITS, Limits, check_room
from broker.messages import Part, Send, Side, size_of
from broker.registry import Registry
from broker.routes import Route, Routes
from fedsea_mq.errors import Busy, FedSeaError, NodeUnknown, SessionLost, code_of
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Nothing, Open, encode_body


@dataclass(frozen=True, slots=True)
class BrokerTerms:
    """The intervals that nodes are held to, and the limits that clients are."""

    heartbeat_ms: int
    timeout_ms: int
    limits: Limits = NO_LIMITS


@dataclass(slots=True)
class Counters:
    """Totals since the broker started; up is what was relayed to nodes, down to clients."""

    frames_up: int = 0
    bytes_up: int = 0
    frames_down: int = 0
    bytes_down: int = 0
    busy: int = 0
    """Answers that told a client to come again later."""
    refused: Counter[str] = field(default_factory=Counter)
    """Messages refused for a fault of theirs, by the code of the error."""
    let_go: int = 0
    """Peers that were gone, or too slow."""

    def refuse(self, error: FedSeaError) -> None:
        """A message is answered with an error."""
        if isinstance(error, Busy):
            self.busy += 1
        elif not isinstance(error, NodeUnknown):  # an answer, and no fault of whoever asked
            self.refused[code_of(error)] += 1

    @property
    def errors(self) -> int:
        """All that went wrong."""
        return self.refused.total() + self.let_go


class BrokerState:
    """Nodes, sessions and who waits for room, and the changes that come from either side."""

    def __init__(
        self, terms: BrokerTerms, started_at: float, on_event: OnEvent = unwatched
    ) -> None:
        self.terms = terms
        self.started_at = started_at
        self.on_event = on_event
        self.registry = Registry(terms.timeout_ms / 1000)
        self.routes = Routes()
        self.admission = Admission(self.registry)
        self.counters = Counters()
        # Clients that something was sent to since heartbeats went out last.
        self.addressed: set[bytes] = set()

    def is_young(self, now: float) -> bool:
        """Whether nodes may have yet to say which sessions they hold."""
        return now - self.started_at < self.terms.timeout_ms / 1000

    @property
    def yet_to_register(self) -> Busy:
        """What is said while no node is there."""
        return Busy("no node is registered now", self.terms.heartbeat_ms / 1000)

    def check_client_has_room(self, asked: Open) -> None:
        """Raise `Busy` or `LimitExceeded` if the client may not have this session, too."""
        if asked.onward is not None:
            return  # it counts where it begins
        held = self.routes.held_by(asked.client)
        check_room(self.terms.limits, held, asked.max_positions)

    def begin(self, route: Route, opening: Frame, now: float) -> Send:
        """Send a session to its node."""
        self.routes.begin(opening.envelope.session, route, now)
        return self.relay(Side.NODES, route.node, opening.parts())

    def tell(self, verdicts: Sequence[Verdict], now: float) -> Iterator[Send]:
        """Send sessions where they were placed, and say so to those that were not."""
        for verdict in verdicts:
            ask, outcome = verdict.ask, verdict.outcome
            if isinstance(outcome, FedSeaError):
                yield self.refuse(ask, outcome, now)
                continue
            try:
                self.check_client_has_room(ask.body)  # others of its sessions may be there by now
            except FedSeaError as error:
                self.registry.ended(outcome.peer, ask.envelope.session)
                yield self.refuse(ask, error, now)
                continue
            opening = Frame(ask.envelope, encode_body(ask.body))
            self.on_event(SessionPlaced(ask.body.trace, outcome.offer.name, now - ask.at))
            yield self.begin(_route(outcome.peer, ask), opening, now)

    def room_was_made(self, now: float) -> Iterator[Send]:
        """Serve those that wait and fit in now."""
        yield from self.tell(self.admission.room_was_made(now), now)

    def refuse(self, ask: Ask, error: FedSeaError, now: float) -> Send:
        """Answer a request for a session with an error."""
        self.counters.refuse(error)
        self.on_event(SessionRefused(ask.body.trace, type(error).__name__, now - ask.at))
        return Send(Side.CLIENTS, ask.peer, Frame.error(error, ask.envelope).parts())

    def end(self, session: bytes, reason: FedSeaError | None = None) -> Route:
        """Forget a session, whose room on its node is free again."""
        route = self.routes.end(session)
        self.registry.ended(route.node, session)
        self._tell_over(route, reason)
        return route

    def _tell_over(self, route: Route, reason: FedSeaError | None) -> None:
        error = None if reason is None else type(reason).__name__
        self.on_event(SessionOver(route.trace, error))

    def lose_node(self, peer: bytes) -> list[Send]:
        """Forget a node, and tell the clients of its sessions."""
        self.registry.drop(peer)
        reason = SessionLost("the node that held the session is gone")
        lost = self.routes.end_all_of(peer)
        for _, route in lost:
            self._tell_over(route, reason)
        return [told for session, route in lost for told in closing(route, session, reason)]

    def relay(self, side: Side, peer: bytes, parts: Sequence[Part]) -> Send:
        """Pass a message on, untouched."""
        if side is Side.NODES:
            self.counters.frames_up += 1
            self.counters.bytes_up += size_of(parts)
        else:
            self.counters.frames_down += 1
            self.counters.bytes_down += size_of(parts)
        return Send(side, peer, parts)


def closing(route: Route, session: bytes, reason: FedSeaError) -> list[Send]:
    """Tell a session's client that it is over; nobody, if none has spoken for it."""
    if route.client is None:
        return []
    return [Send(Side.CLIENTS, route.client, Frame.closing(reason, session).parts())]


def close_on_node(peer: bytes, session: bytes) -> Send:
    """Have a node free a session."""
    return Send(Side.NODES, peer, Frame.build(Kind.CLOSE, Nothing(), session=session).parts())


def _route(node: bytes, ask: Ask) -> Route:
    body = ask.body
    onward_for = None if body.onward is None else body.onward.client
    return Route(
        node,
        ask.peer,
        body.client,
        positions=body.max_positions,
        onward_for=onward_for,
        trace=body.trace,
    )
