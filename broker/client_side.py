"""What the broker does with clients' messages. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Final

from broker.admission import Ask
from broker.limits import Meters
from broker.messages import (
    CLIENT_PARTIES,
    OPENERS,
    TO_SESSION,
    Message,
    Part,
    Send,
    Side,
    size_of,
)
from broker.routes import Route
from broker.state import BrokerState
from fedsea_mq.errors import (
    Busy,
    MalformedFrame,
    RunUnknown,
    SessionNotYours,
    SessionUnknown,
)
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Open, StatusReport, encode_body
from fedsea_mq.protocol.stage import Onward
from fedsea_mq.protocol.training_messages import Enlist
from fedsea_mq.security.identity import Identity, Party

# A report is made anew when it is older than this.
_REPORT_S: Final = 0.05
# No message that only ends a session has as many bytes.
_SMALL: Final = 256


@dataclass(slots=True)
class _Report:
    made_at: float
    body: bytes


class ClientSide:
    """Who asks for sessions, and speaks in them."""

    def __init__(self, state: BrokerState, secret: bytes) -> None:
        self._state = state
        # Keys the names under which nodes know connections; the socket's own stay in here.
        self._secret = secret
        self._meters = Meters(state.terms.limits)
        # The last report: asking often costs no more than asking seldom.
        self._report: _Report | None = None

    def handle(self, message: Message, now: float) -> Iterator[Send]:
        """What to send for a client's message. Raises the typed error that refuses it."""
        envelope, who = message.envelope, message.who
        who.must_be(*OPENERS)
        self._check_owner(envelope.session, who)
        if self._meters.limit_anybody and not self._is_free(message):
            self._meters.take(self._client(message), size_of(message.parts), now)
        if envelope.kind in (Kind.OPEN, Kind.ENLIST):
            yield from self._open(message, now)
        elif envelope.kind in TO_SESSION:
            yield from self._to_node(message, now)
        elif envelope.kind is Kind.STATUS:
            who.must_be(*CLIENT_PARTIES)
            yield Send(Side.CLIENTS, message.peer, self._status(envelope, now))
        else:
            raise MalformedFrame(f"a {envelope.kind.name} frame is not for a client to send")

    def forget_idle(self, now: float) -> None:
        """Keep nothing of clients that have not sent for a while."""
        self._meters.forget_idle(now)

    def _is_free(self, message: Message) -> bool:
        """Whether it is not metered: its client was, where it came in, or gives room back."""
        route = self._state.routes.get(message.envelope.session)
        return (route is not None and _is_onward(route, message)) or self._gives_room_back(message)

    def _gives_room_back(self, message: Message) -> bool:
        """Whether it ends a session, and does no more: it must not have to wait."""
        envelope, state = message.envelope, self._state
        if envelope.kind is not Kind.CLOSE or size_of(message.parts) > _SMALL:
            return False
        waits = state.admission.client_of(envelope.session) is not None
        return waits or state.routes.get(envelope.session) is not None

    def _check_owner(self, session: bytes, who: Identity) -> None:
        if not (session and who.id):
            return
        route = self._state.routes.get(session)
        owner = self._state.admission.client_of(session) if route is None else route.owner
        if owner is not None and owner != who.id:
            raise SessionNotYours("the session was opened with another key")

    def _open(self, message: Message, now: float) -> Iterator[Send]:
        state, envelope, peer = self._state, message.envelope, message.peer
        if not envelope.session:
            raise MalformedFrame(f"a {envelope.kind.name} frame without a session id")
        asked = self._asked(message, now)
        route = state.routes.get(envelope.session)
        if route is not None:
            state.routes.asked_again(envelope.session, peer, now)
            yield state.relay(Side.NODES, route.node, [message.parts[0], encode_body(asked)])
        elif isinstance(asked, Enlist):
            opening = Frame(envelope, encode_body(asked))
            yield state.begin(Route(self._of_run(asked, now), peer, asked.client), opening, now)
        else:
            if not state.registry.trunks:
                raise state.yet_to_register
            state.check_client_has_room(asked)
            yield from state.tell(state.admission.ask(Ask(peer, envelope, asked, now), now), now)

    def _asked(self, message: Message, now: float) -> Open | Enlist:
        # Fairness is between keys, or between connections where there are none: not between
        # whatever names clients give themselves.
        client, who, frame = self._client(message), message.who, message.frame
        if message.envelope.kind is Kind.OPEN:
            asked = replace(frame.body(Open), client=client)
            if asked.onward is not None:
                return replace(asked, onward=self._onward(message, asked.onward, now))
            who.must_be(Party.CLIENT)
            return asked
        enlist = frame.body(Enlist)
        if enlist.member is None:
            who.must_be(Party.AGGREGATOR)
        else:
            who.must_be(Party.TRAINER)
            who.may_be_called(enlist.member)
        return replace(enlist, client=client)

    def _onward(self, message: Message, asked: Onward, now: float) -> Onward:
        """Let a node take a session on that was opened with it, to one place at a time."""
        routes, who, session = self._state.routes, message.who, message.envelope.session
        who.must_be(Party.TRUNK)
        held = routes.get(asked.session or b"")
        if held is None:
            raise self._unknown("no such session that could go on", now)
        if self._state.registry.owner(held.node) != who.id:
            raise SessionNotYours("the session is not on a node of this key")
        if held.onward != session and routes.get(held.onward) is not None:
            raise Busy("the session still goes on elsewhere")
        held.onward = session
        return replace(asked, session=None, client=held.served)

    def _unknown(self, message: str, now: float) -> Busy | SessionUnknown:
        """Nodes of a restarted broker have yet to say which sessions they hold."""
        if self._state.is_young(now):
            return Busy("nodes are still registering", self._state.terms.heartbeat_ms / 1000)
        return SessionUnknown(message)

    def _client(self, message: Message) -> bytes:
        """Whom limits are for, and between whom fairness is."""
        if message.who.id:
            return message.who.id
        return blake2b(message.peer, digest_size=16, key=self._secret).digest()

    def _of_run(self, asked: Enlist, now: float) -> bytes:
        node = self._state.registry.of_run(asked)
        if node is not None:
            return node.peer
        if self._state.is_young(now):
            raise self._state.yet_to_register
        raise RunUnknown(f"no {asked.role.value} of run {asked.run} is registered")

    def _to_node(self, message: Message, now: float) -> Iterator[Send]:
        state, envelope = self._state, message.envelope
        route = state.routes.get(envelope.session)
        if route is not None:
            route.client = message.peer
            yield state.relay(Side.NODES, route.node, message.parts)
            if envelope.kind is Kind.CLOSE:
                state.end(envelope.session)
                yield from state.room_was_made(now)
        elif envelope.kind is Kind.CLOSE:
            state.admission.gave_up(envelope.session)
        else:
            raise self._unknown("no node holds this session", now)

    def _status(self, envelope: Envelope, now: float) -> Sequence[Part]:
        if self._report is None or now - self._report.made_at > _REPORT_S:
            state = self._state
            report = StatusReport(
                uptime_s=now - state.started_at,
                sessions=len(state.routes),
                frames_relayed=state.counters.frames_up + state.counters.frames_down,
                bytes_relayed=state.counters.bytes_up + state.counters.bytes_down,
                errors=state.counters.errors,
                nodes=state.registry.statuses(now, state.admission.asked),
                waiting=state.admission.waiting,
            )
            self._report = _Report(now, encode_body(report))
        return Frame(Envelope(Kind.STATUS_REPORT, seq=envelope.seq), self._report.body).parts()


def _is_onward(route: Route, message: Message) -> bool:
    """Whether a stage speaks to the next one, as far as a broker knows that was restarted since."""
    parties = message.who.parties
    of_trunk = bool(message.who.id) and Party.TRUNK in parties and Party.CLIENT not in parties
    return route.onward_for is not None or of_trunk
