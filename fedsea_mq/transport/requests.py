"""Requests over a link: paired with their replies, sent again on silence, patient with `busy`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import count
from typing import Final, Protocol

from fedsea_mq.errors import (
    Busy,
    FedSeaError,
    NotRunning,
    NotTrusted,
    PeerUnreachable,
    RemoteError,
    SealBroken,
    SessionNotYours,
    SessionUnknown,
)
from fedsea_mq.log import get_logger
from fedsea_mq.protocol.envelope import NO_SESSION, Kind
from fedsea_mq.protocol.frames import Frame, Parts, wire_bytes
from fedsea_mq.protocol.messages import Body, Nothing
from fedsea_mq.security.client_seals import ClientSeals
from fedsea_mq.security.sealing import is_sealed
from fedsea_mq.telemetry.trace import trace_fields

_log = get_logger(__name__)
# What a trunk node may say by itself; that a session is over is for the broker to tell.
_DIRECT_REPLIES: Final = frozenset({Kind.RESULT, Kind.RENEWED, Kind.ERROR})
# What it may be wrong about.
_FOR_THE_BROKER: Final = (SealBroken, SessionUnknown, SessionNotYours, NotTrusted)


@dataclass(slots=True)
class Traffic:
    """Bytes of one session on the wire, ZMTP framing included, re-sent frames too."""

    bytes_up: int = 0
    bytes_down: int = 0
    round_trips: int = 0
    """Requests that were answered, but for those to open a session: they have no other way."""
    direct_trips: int = 0
    """Of those, the ones that were answered past the broker."""
    refusals: int = 0
    """Busy replies, each waited out and asked again."""

    def __add__(self, other: Traffic) -> Traffic:
        return self._with(other, 1)

    def __sub__(self, other: Traffic) -> Traffic:
        return self._with(other, -1)

    def _with(self, other: Traffic, sign: int) -> Traffic:
        names = (part.name for part in fields(self))
        return Traffic(*(getattr(self, name) + sign * getattr(other, name) for name in names))


@dataclass(frozen=True, slots=True)
class Patience:
    """When an unanswered request is sent again, and when it is given up."""

    resend_s: float
    give_up_s: float


class DirectWay(Protocol):
    """A way past the broker, which a request takes first."""

    def send(self, parts: Parts) -> None:
        """Queue the request."""
        ...

    def failed(self) -> None:
        """It brought no answer: the request goes through the broker now."""
        ...


@dataclass(slots=True, eq=False)
class _Request:
    """A request that has no answer yet; times are the loop's."""

    kind: Kind
    number: int
    session: bytes
    parts: Parts
    traffic: Traffic
    give_up_s: float
    give_up_at: float
    reply: asyncio.Future[Frame]
    direct: DirectWay | None
    # What log lines about it say besides.
    fields: Mapping[str, str]
    resend_at: float = 0.0
    # The request, or an answer to it, was not as it was sealed: it is sent again.
    broken: SealBroken | None = None


def _bear_it(_: float) -> None:
    return None


class Requests:
    """The requests of one client: over its link to the broker, or past it where there is a way."""

    def __init__(
        self,
        send: Callable[[Parts], None],
        patience: Patience,
        peer: str = "the broker",
        seals: ClientSeals | None = None,
        on_silence: Callable[[float], None] = _bear_it,
    ) -> None:
        """`peer` is how errors name who does not answer; with `seals`, sessions are sealed.

        `on_silence` is told how long a request has waited before it is sent to the broker again.
        """
        self._send = send
        self._on_silence = on_silence
        self._peer = peer
        self._patience = patience
        self._seals = seals
        # Since the beginning: requests sent again on silence, and those told to come again later.
        self.retries = 0
        self.refusals = 0
        self._numbers = count(1)
        self._pending: dict[int, _Request] = {}
        # One timer for all: a request is answered long before its own would be of any use.
        self._timer: asyncio.TimerHandle | None = None

    @property
    def give_up_s(self) -> float:
        """How long the answer to a request is waited for."""
        return self._patience.give_up_s

    async def ask(
        self,
        kind: Kind,
        body: Body,
        *,
        session: bytes = NO_SESSION,
        payload: Sequence[bytes] = (),
        traffic: Traffic | None = None,
        direct: DirectWay | None = None,
        give_up_s: float | None = None,
        trace: bytes | None = None,
    ) -> Frame:
        """The reply to a request.

        The same bytes, sequence number included, are sent again when nothing comes back: the trunk
        recognises them, so they are never computed twice. They go by the `direct` way only once.
        `give_up_s` is for answers that others have to be waited for with; by default it is the
        patience of all. `trace` is what its session was opened with, for the log.

        Raises:
            PeerUnreachable: no answer within the time to give up.
            SealBroken: the last that came by then was not as the node had sealed it.
            Busy: still no room by then.
            RemoteError: whatever the broker or the trunk refused the request with.
        """
        loop = asyncio.get_running_loop()
        give_up_s = self._patience.give_up_s if give_up_s is None else give_up_s
        number, give_up_at = next(self._numbers), loop.time() + give_up_s
        request = _Request(
            kind,
            number,
            session,
            self._build(kind, body, session, number, payload).parts(),
            traffic if traffic is not None else Traffic(),
            give_up_s,
            give_up_at,
            loop.create_future(),
            direct,
            trace_fields(trace),
        )
        refused: Busy | None = None
        while True:
            left = give_up_at - loop.time()
            try:
                return await self._try(request)
            except Busy as busy:
                request.traffic.refusals += 1
                self.refusals += 1
                refused = busy
                if loop.time() + busy.retry_after_s > give_up_at:
                    raise
                await asyncio.sleep(busy.retry_after_s)
                request.reply = loop.create_future()
            except PeerUnreachable:
                # So little time was left that silence means nothing: what was last said counts.
                if refused is not None and left < self._patience.resend_s:
                    raise refused from None
                raise

    def _build(
        self, kind: Kind, body: Body, session: bytes, number: int, payload: Sequence[bytes]
    ) -> Frame:
        if self._seals is None:
            return Frame.build(kind, body, session=session, seq=number, payload=payload)
        return self._seals.build(kind, body, session, number, payload)

    def close(self, session: bytes) -> None:
        """Tell that a session is over, and forget it; there is no answer. Raises `NotRunning`."""
        self.forget(session)
        # Its number says that it is a client's: what a broker ends by itself has none.
        number = next(self._numbers)
        self._send(Frame.build(Kind.CLOSE, Nothing(), session=session, seq=number).parts())

    def forget(self, session: bytes) -> None:
        """A session is over, and nobody is told."""
        if self._seals is not None:
            self._seals.forget(session)

    async def _try(self, request: _Request) -> Frame:
        """Send until a frame comes back; a refusal is raised."""
        loop = asyncio.get_running_loop()
        request.resend_at = min(request.give_up_at, loop.time() + self._patience.resend_s)
        self._pending[request.number] = request
        try:
            self._transmit(request)
            if self._timer is None:
                self._timer = loop.call_at(request.resend_at, self._send_again)
            reply = await request.reply
        finally:
            del self._pending[request.number]
        request.traffic.round_trips += request.kind is not Kind.OPEN
        return reply

    def _transmit(self, pending: _Request) -> None:
        send = self._send if pending.direct is None else pending.direct.send
        send(pending.parts)
        pending.traffic.bytes_up += wire_bytes(pending.parts)

    def _send_again(self) -> None:
        """Send again, or give up, what has waited long enough; come back for the rest."""
        loop = asyncio.get_running_loop()
        now, self._timer = loop.time(), None
        for pending in list(self._pending.values()):
            if pending.resend_at <= now and not pending.reply.done():
                self._insist(pending, now)
        if self._pending:
            earliest = min(pending.resend_at for pending in self._pending.values())
            self._timer = loop.call_at(max(earliest, now), self._send_again)

    def _insist(self, pending: _Request, now: float) -> None:
        if pending.give_up_at <= now:
            waited_s = pending.give_up_s
            silence = PeerUnreachable(
                f"no answer to {pending.kind.name} from {self._peer} within {waited_s:g} s"
            )
            pending.reply.set_exception(pending.broken or silence)
            return
        waited_s = round(self._patience.resend_s, 1)
        _log.warning("no answer yet; sending again", waited_s=waited_s, **pending.fields)
        self.retries += 1
        pending.resend_at = min(pending.give_up_at, now + self._patience.resend_s)
        pending.broken = None
        self._on_silence(now - (pending.give_up_at - pending.give_up_s))
        self._send_by_broker(pending)

    def _send_by_broker(self, pending: _Request) -> None:
        if pending.direct is not None:
            pending.direct.failed()
            pending.direct = None
        try:
            self._transmit(pending)
        except NotRunning as error:
            pending.reply.set_exception(error)

    def receive(self, frame: Frame) -> None:
        """Give the broker's frame to whoever waits for it; else it is an old duplicate."""
        if frame.envelope.kind is Kind.CLOSE:
            self._fail_session(frame)
        elif (pending := self._asked(frame)) is not None:
            answer, refusal = self._opened(frame)
            if isinstance(refusal, SealBroken):
                said = {"reason": str(refusal), **pending.fields}
                _log.warning("not as it was sealed; to be sent again", **said)
                pending.broken = refusal
            else:
                _settle(pending, answer, refusal, wire_bytes(frame.parts()))

    def receive_directly(self, frame: Frame) -> None:
        """Give a trunk node's own frame to whoever waits for it."""
        pending = self._asked(frame)
        if pending is None or frame.envelope.kind not in _DIRECT_REPLIES:
            return
        answer, refusal = self._opened(frame)
        if not self._proves_nothing(frame, refusal):
            pending.traffic.direct_trips += refusal is None
            _settle(pending, answer, refusal, wire_bytes(frame.parts()))
        elif pending.direct is not None:
            # Another process may have the endpoint now, or its list be another than the broker's,
            # which knows where the session is and whose.
            self._send_by_broker(pending)

    def _proves_nothing(self, frame: Frame, refusal: FedSeaError | None) -> bool:
        """Whether anybody could have said that, who answers at the node's endpoint."""
        if refusal is None:
            return False
        in_clear = self._seals is not None and not is_sealed(frame.packed_body)
        return in_clear or isinstance(refusal, _FOR_THE_BROKER)

    def _opened(self, frame: Frame) -> tuple[Frame, FedSeaError | None]:
        """A frame as its sender meant it, and what it refuses with, or is refused with itself."""
        try:
            opened = frame if self._seals is None else self._seals.open(frame)
            return opened, opened.refusal()
        except RemoteError as error:
            return frame, error

    def refuse(self, error: RemoteError) -> None:
        """The link cannot be made: what waits fails with this, and does not wait in vain."""
        for pending in self._pending.values():
            if pending.direct is None and not pending.reply.done():
                pending.reply.set_exception(error)

    def _asked(self, frame: Frame) -> _Request | None:
        """The request that a frame answers and that still waits."""
        pending = self._pending.get(frame.envelope.seq)
        if pending is None or pending.reply.done() or pending.session != frame.envelope.session:
            return None
        return pending

    def _fail_session(self, frame: Frame) -> None:
        """The other side closed a session: what waits for it fails at once."""
        _, reason = self._opened(frame)
        if isinstance(reason, SealBroken):
            _log.warning("a session is not closed by this", reason=str(reason))
            return
        self.forget(frame.envelope.session)
        for pending in self._pending.values():
            if pending.session == frame.envelope.session and not pending.reply.done():
                pending.reply.set_exception(reason or RemoteError("the session was closed"))


def _settle(pending: _Request, answer: Frame, refusal: FedSeaError | None, bytes_down: int) -> None:
    if refusal is not None:
        pending.reply.set_exception(refusal)
    else:
        pending.traffic.bytes_down += bytes_down
        pending.reply.set_result(answer)


def refusal_of(frame: Frame) -> FedSeaError | None:
    """What a frame refuses with; that it cannot be read is a refusal, too."""
    try:
        return frame.refusal()
    except RemoteError as malformed:
        return malformed
