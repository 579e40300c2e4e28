"""What the broker does with nodes' messages. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from broker.messages import (
    FROM_SESSION,
    NODE_PARTIES,
    REFUSALS,
    REGISTERS,
    Message,
    Send,
    Side,
)
from broker.state import BrokerState, close_on_node
from fedsea_mq.errors import MalformedFrame, NodeUnknown, NotTrusted
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Load, Nothing, Register, Registered
from fedsea_mq.security.identity import Identity


class NodeSide:
    """Who holds sessions, and answers in them."""

    def __init__(self, state: BrokerState) -> None:
        self._state = state

    def handle(self, message: Message, now: float) -> Iterator[Send]:
        """What to send for a node's message. Raises the typed error that refuses it."""
        message.who.must_be(*NODE_PARTIES)
        if self._state.registry.owner(message.peer) not in (None, message.who.id):
            raise NotTrusted("this connection's node was registered with another key")
        match message.envelope.kind:
            case Kind.REGISTER:
                yield from self._register(message, now)
            case Kind.HEARTBEAT:
                yield from self._heartbeat(message, now)
            case Kind.LEAVE:
                yield from self._state.lose_node(message.peer)
            case kind if kind in FROM_SESSION:
                yield from self._to_client(message, now)
            case kind:
                raise MalformedFrame(f"a {kind.name} frame is not for a node to send")

    def _heartbeat(self, message: Message, now: float) -> Iterator[Send]:
        load = message.frame.body(Load)
        self._state.registry.heartbeat(message.peer, load, now)
        self._compare(message.peer, load)
        echo = Frame.build(Kind.HEARTBEAT, Nothing(), seq=message.envelope.seq)
        yield Send(Side.NODES, message.peer, echo.parts())
        yield from self._state.room_was_made(now)

    def _compare(self, peer: bytes, load: Load) -> None:
        """Have a node say again what it holds, if that is less than is routed there.

        Its frames come in order, so it holds all that it accepted and did not close. What it
        closed may be routed there all the same: if it was told to by who did not know that it was
        just about to register with it.
        """
        routed = self._state.routes.accepted_by(peer)
        if routed > load.sessions:
            raise NodeUnknown(f"{routed} sessions are routed to the node, which holds fewer")

    def _register(self, message: Message, now: float) -> Iterator[Send]:
        state, peer, who = self._state, message.peer, message.who
        offer = message.frame.body(Register)
        who.must_be(REGISTERS[offer.role])
        owners = zip(offer.sessions, _owners(offer), strict=True)
        state.registry.register(peer, offer, now, who.id)
        elsewhere = {i for i in offer.sessions if self._is_elsewhere(i, peer, offer.name)}
        held = {
            session: owner
            for session, owner in owners
            if session not in elsewhere and self._may_hold(session, who)
        }
        for session, route in state.routes.registered(peer, held, keyed=bool(who.id)):
            # A restarted broker sent it to another node before this one was here. That one closes
            # it when it answers; its room is there again.
            state.registry.ended(route.node, session)
        terms = Registered(state.terms.heartbeat_ms, state.terms.timeout_ms)
        registered = Frame.build(Kind.REGISTERED, terms, seq=message.envelope.seq)
        yield Send(Side.NODES, peer, registered.parts())
        yield from (
            close_on_node(peer, session) for session in offer.sessions if session in elsewhere
        )
        yield from state.room_was_made(now)

    def _is_elsewhere(self, session: bytes, peer: bytes, name: str) -> bool:
        """Whether another node than this one has accepted a session since, and goes on with it.

        Under the address that it had before its connection was made anew, a node is no other.
        """
        route = self._state.routes.get(session)
        if route is None or route.node == peer or not route.accepted:
            return False
        return self._state.registry.name_of(route.node) not in (None, name)

    def _may_hold(self, session: bytes, who: Identity) -> bool:
        """Whether no other key's node holds the session, and has not gone."""
        known = self._state.routes.get(session)
        return known is None or self._state.registry.owner(known.node) in (None, who.id)

    def _to_client(self, message: Message, now: float) -> Iterator[Send]:
        state, envelope, peer = self._state, message.envelope, message.peer
        route = state.routes.get(envelope.session)
        if route is None or route.node != peer:
            # Who has yet to register says then what it holds, and was only faster with an answer.
            told = envelope.kind in (Kind.CLOSE, *REFUSALS)
            if peer in state.registry and not told:
                yield close_on_node(peer, envelope.session)
            return
        if route.client is not None:
            state.addressed.add(route.client)
            yield state.relay(Side.CLIENTS, route.client, message.parts)
        refused = envelope.kind in REFUSALS and not route.accepted
        if envelope.kind is Kind.CLOSE or refused:
            state.end(envelope.session)
            yield from state.room_was_made(now)
        elif envelope.kind is Kind.ACCEPT:
            state.routes.accepted(envelope.session)
            state.registry.accepted(peer, envelope.session)


def _owners(offer: Register) -> Sequence[bytes]:
    """Whose each session of a registration is; nobody's, where the node does not say."""
    if offer.owners and len(offer.owners) != len(offer.sessions):
        raise MalformedFrame(f"{len(offer.sessions)} sessions of {len(offer.owners)} owners")
    return offer.owners or [b""] * len(offer.sessions)
