"""A member's two sessions of a run: with the trunk, and with the aggregator."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final, TypeVar

from fedsea_mq.errors import (
    MalformedFrame,
    MemberReplaced,
    NotRunning,
    PeerUnreachable,
    RemoteError,
    RunUnknown,
    SessionLost,
    SessionUnknown,
)
from fedsea_mq.log import get_logger
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import SESSION_BYTES, Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Accept, Body, Nothing
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.protocol.training_messages import Enlist
from fedsea_mq.transport.requests import Requests, Traffic, refusal_of

_log = get_logger(__name__)
B = TypeVar("B", bound=Body)
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
# The party is away or has forgotten us: all that helps is to enlist again.
LOST: Final = (SessionLost, SessionUnknown)
_AWAY: Final = (*LOST, RunUnknown, PeerUnreachable)
_REPLIES: Final = {
    Kind.ENLIST: Kind.ACCEPT,
    Kind.RENEW: Kind.RENEWED,
    Kind.FORWARD: Kind.OUTPUTS,
    Kind.BACKWARD: Kind.GRADIENT,
    Kind.STEP: Kind.STEPPED,
    Kind.ASK: Kind.TASK,
    Kind.UPDATE: Kind.UPDATED,
    Kind.SECURE: Kind.SECURED,
}


@dataclass(frozen=True, slots=True)
class Membership:
    """Who enlists in what; see `Enlist`."""

    run: str
    member: str
    fingerprint: str
    agreed: str
    dtype: WireDtype

    def asks(self, role: Role) -> Enlist:
        """The body of an enlist frame."""
        return Enlist(role, self.run, self.fingerprint, self.agreed, self.dtype, self.member)


class Sessions:
    """Enlists with both parties; if one session is lost, so is the other.

    `give_up_s` is how long both may be away, `round_s` how long an answer of the trunk may take
    that other members have to be waited for with.
    """

    def __init__(
        self,
        requests: Requests,
        membership: Membership,
        *,
        give_up_s: float,
        round_s: float,
    ) -> None:
        self._requests = requests
        self._membership = membership
        self._give_up_s = give_up_s
        self._round_s = round_s
        self._ids: dict[Role, bytes] = {}
        self._lost: RemoteError | None = None
        self._pause_s = _FIRST_PAUSE_S
        self.frame_positions = 0
        """The most positions that one frame to the trunk may hold."""

    @asynccontextmanager
    async def enlisted(self) -> AsyncIterator[None]:
        """Both sessions, renewed while inside.

        Raises:
            RemoteError: refused, or no trunk or aggregator of the run for `give_up_s`.
        """
        accepted = await self._enlist_patiently()
        renewing = [
            asyncio.create_task(self._renew(role, accept.lease_ms / 3000), name=f"fedsea {role}")
            for role, accept in accepted.items()
        ]
        try:
            yield
        finally:
            for task in renewing:
                task.cancel()
            await asyncio.wait(renewing)
            self._close()

    def worked(self) -> None:
        """The parties are at work: the next time that they are lost is the first again."""
        self._pause_s = _FIRST_PAUSE_S

    async def pause(self) -> None:
        """Wait a little, and longer each time until something works again."""
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, _LONGEST_PAUSE_S)
        await asyncio.sleep(pause_s)

    async def _enlist_patiently(self) -> dict[Role, Accept]:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._give_up_s
        while True:
            try:
                return await self._enlist()
            except _AWAY as error:
                if loop.time() + self._pause_s > give_up_at:
                    raise
                _log.info("trunk or aggregator is away", reason=type(error).__name__)
                await self.pause()

    async def _enlist(self) -> dict[Role, Accept]:
        """With the trunk first: the aggregator counts on who enlists with it."""
        self._lost, accepted = None, {}
        try:
            for role in (Role.TRUNK, Role.AGGREGATOR):
                # A new id, so that nothing of an older session can be taken for this one's.
                self._ids[role] = secrets.token_bytes(SESSION_BYTES)
                reply = await self.ask(role, Kind.ENLIST, self._membership.asks(role))
                accepted[role] = reply.body(Accept)
        except BaseException:
            self._close()
            raise
        self.frame_positions = accepted[Role.TRUNK].max_frame_positions
        return accepted

    def _close(self) -> None:
        for session in self._ids.values():
            with suppress(NotRunning):  # then the lease ends it
                self._requests.close(session)
        self._ids.clear()

    async def ask(
        self,
        role: Role,
        kind: Kind,
        body: Body,
        payload: Sequence[bytes] = (),
        traffic: Traffic | None = None,
    ) -> Frame:
        """The reply of one of the parties.

        Raises:
            SessionLost, SessionUnknown: this session or the other is gone.
            MemberReplaced: another process takes part under this member's name.
            RemoteError: as the party refuses, or `MalformedFrame` for a reply of another kind.
        """
        if self._lost is not None:
            raise self._lost
        waits = kind in (Kind.FORWARD, Kind.BACKWARD, Kind.STEP)
        reply = await self._requests.ask(
            kind,
            body,
            session=self._ids[role],
            payload=payload,
            traffic=traffic,
            give_up_s=self._round_s if waits else None,
        )
        if reply.envelope.kind is not _REPLIES[kind]:
            raise MalformedFrame(f"a {reply.envelope.kind.name} frame in reply to {kind.name}")
        return reply

    def receive(self, frame: Frame) -> None:
        """Hear of the end of a session that nothing waits for."""
        if frame.envelope.kind is not Kind.CLOSE:
            return
        if frame.envelope.session in self._ids.values():
            reason = refusal_of(frame)
            lost = SessionLost("a session was closed")
            self._lose(reason if isinstance(reason, MemberReplaced) else lost)

    def _lose(self, why: RemoteError) -> None:
        if self._lost is not None:
            return
        self._lost = why
        # Whoever waits for the other party would wait for nothing.
        for session in self._ids.values():
            self._requests.receive(Frame.closing(self._lost, session))

    async def _renew(self, role: Role, every_s: float) -> None:
        while self._lost is None:
            await asyncio.sleep(every_s)
            try:
                await self.ask(role, Kind.RENEW, Nothing())
            except RemoteError as error:
                why = f"the lease with the {role} was not renewed: {type(error).__name__}"
                self._lose(SessionLost(why))
