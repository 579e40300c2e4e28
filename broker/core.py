"""What the broker does with each message: messages and times in, messages out. No socket, no clock.

Sessions are opened for serving, or enlisted for training; both are relayed alike.

Who sends a message is an argument, an identity that its key has proven: a session is its key's,
from whatever connection. Where no keys are in use, a session id is 16 random bytes that only its
client, its node and this broker know, and whoever presents it is its client.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from broker.client_side import ClientSide
from broker.events import OnEvent, unwatched
from broker.messages import NO_ENVELOPE, Message, Part, Send, Side, read_envelope
from broker.node_side import NodeSide
from broker.state import BrokerState, BrokerTerms, Counters, close_on_node, closing
from fedsea_mq.errors import FedSeaError, NotTrusted, SessionLost
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Nothing
from fedsea_mq.security.identity import ANYBODY, Identity


class BrokerCore:
    """A whole broker, but for its sockets and clock."""

    def __init__(
        self,
        terms: BrokerTerms,
        started_at: float,
        secret: bytes = b"",
        on_event: OnEvent = unwatched,
    ) -> None:
        """`on_event` is told of sessions that are placed, refused or over."""
        self._state = BrokerState(terms, started_at, on_event)
        self._clients = ClientSide(self._state, secret)
        self._nodes = NodeSide(self._state)
        self._ticked_at = started_at
        # When idle clients were last sent heartbeats.
        self._beat_at = started_at

    @property
    def counters(self) -> Counters:
        """Totals since the broker started."""
        return self._state.counters

    @property
    def sessions(self) -> int:
        """Sessions that are routed now."""
        return len(self._state.routes)

    @property
    def waiting(self) -> int:
        """Sessions that wait for room."""
        return self._state.admission.waiting

    def nodes(self, role: Role) -> int:
        """Nodes of that role that are alive."""
        return self._state.registry.count(role)

    def from_client(
        self, peer: bytes, parts: Sequence[Part], now: float, who: Identity = ANYBODY
    ) -> list[Send]:
        """Handle a client's message; every fault becomes a typed error back to it.

        `peer` is where the answer goes, `who` is whose the message is.
        """
        return self._handled(Side.CLIENTS, self._clients.handle, (peer, parts, who), now)

    def from_node(
        self, peer: bytes, parts: Sequence[Part], now: float, who: Identity = ANYBODY
    ) -> list[Send]:
        """Handle a node's message; every fault becomes a typed error back to it."""
        return self._handled(Side.NODES, self._nodes.handle, (peer, parts, who), now)

    def _handled(
        self,
        side: Side,
        handle: Callable[[Message, float], Iterator[Send]],
        came: tuple[bytes, Sequence[Part], Identity],
        now: float,
    ) -> list[Send]:
        peer, parts, who = came
        envelope = NO_ENVELOPE
        try:
            envelope = read_envelope(parts)
            return list(handle(Message(peer, envelope, parts, who), now))
        except FedSeaError as error:
            self.counters.refuse(error)
            return [Send(side, peer, Frame.error(error, envelope).parts())]

    def tick(self, now: float) -> list[Send]:
        """Declare silent nodes dead, telling their clients; send idle clients a heartbeat.

        Those that wait for room are given what there is, or told to ask again.

        If the broker was held up itself, it has yet to read what nodes sent meanwhile, and forgives
        that.
        """
        state = self._state
        held_up_s = now - self._ticked_at - state.terms.heartbeat_ms / 1000
        self._ticked_at = now
        told: list[Send] = []
        if held_up_s > 0:
            state.registry.forgive(held_up_s)
        else:
            told += self._let_go_unanswered(now)
        for peer in state.registry.silent(now):
            told += state.lose_node(peer)
        self._clients.forget_idle(now)
        verdicts = [*state.admission.overdue(now), *state.admission.room_was_made(now)]
        return [*told, *state.tell(verdicts, now), *self._beats(now)]

    def _let_go_unanswered(self, now: float) -> Iterator[Send]:
        """Let go of sessions whose node has not answered for so long that it would be dead.

        It was never asked, or its answer was lost, and nobody has asked again: a client that is
        still there may be waiting for the answer.
        """
        reason = SessionLost("the node did not answer for the session")
        for session in self._state.routes.unanswered(now - self._state.terms.timeout_ms / 1000):
            yield from closing(self._state.end(session, reason), session, reason)

    def _beats(self, now: float) -> Iterator[Send]:
        """Heartbeats to the clients that nothing was sent to for half the timeout.

        One that cannot be delivered is how the broker learns that a client is gone; a relayed frame
        tells it as well.
        """
        state = self._state
        if now - self._beat_at < state.terms.timeout_ms / 2000:
            return
        beat = Frame.build(Kind.HEARTBEAT, Nothing()).parts()
        for client in state.routes.clients():
            if client not in state.addressed:
                yield Send(Side.CLIENTS, client, beat)
        self._beat_at = now
        state.addressed.clear()

    def refused(self, side: Side, peer: bytes, error: FedSeaError) -> Send:
        """The answer to a message that could not be taken apart."""
        self.counters.refuse(error)
        return Send(side, peer, Frame.error(error, NO_ENVELOPE).parts())

    def revoked(self, keys: Collection[bytes]) -> list[Send]:
        """The keys of these ids are trusted no more: end all that is theirs."""
        state = self._state
        sends: list[Send] = []
        state.admission.revoked(keys)
        reason = NotTrusted("the session's key is not trusted any more")
        for session in state.routes.of_owners(keys):
            route = state.end(session, reason)
            sends += [close_on_node(route.node, session), *closing(route, session, reason)]
        for peer in state.registry.of_owners(keys):
            sends += state.lose_node(peer)
        return sends

    def undelivered(self, side: Side, peer: bytes) -> list[Send]:
        """The peer is gone, or so slow that its queue is full: let go of it."""
        state = self._state
        self.counters.let_go += 1
        if side is Side.NODES:
            return state.lose_node(peer)
        orphans = state.routes.of_client(peer)
        gone = SessionLost("the session's client is gone")
        return [close_on_node(state.end(session, gone).node, session) for session in orphans]
