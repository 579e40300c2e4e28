"""A session at a trunk node, as its opener has it: kept going, whatever becomes of the node."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from fedsea_mq.errors import (
    MalformedFrame,
    NotRunning,
    PositionConflict,
    PositionGap,
    RemoteError,
    SessionLost,
    SessionUnknown,
)
from fedsea_mq.log import get_logger
from fedsea_mq.protocol.envelope import SESSION_BYTES, Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Accept, Extend, Nothing, Open, Result
from fedsea_mq.protocol.payload import PayloadSpec
from fedsea_mq.telemetry.trace import trace_fields
from fedsea_mq.transport.direct_links import DirectPath
from fedsea_mq.transport.requests import Traffic
from nodes.session_wires import SessionWires

_log = get_logger(__name__)
_RECOVERIES: Final = 8
# How long to wait for a frame in flight before asking again.
_IN_FLIGHT_S: Final = 0.02


class RemoteSession:
    """Opened as `asked`, and anew elsewhere when its node is lost.

    `sent` gives the payload of so many positions from one on: what is to be sent, and for positions
    that were sent, the very bytes again. One `extend` at a time. `on_unknown` is awaited where the
    broker did not know what it is asked for, before it is asked again.
    """

    def __init__(
        self,
        wires: SessionWires,
        asked: Open,
        spec: PayloadSpec,
        sent: Callable[[int, int], list[bytes]],
        on_unknown: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._wires = wires
        self._asked = asked
        self._spec = spec
        self._sent = sent
        self._on_unknown = on_unknown
        self._accept: Accept | None = None
        self._path: DirectPath | None = None
        self._closed = False
        self._renewing: asyncio.Task[None] | None = None
        # Whether no node holds it, or one that has yet to be brought up to date.
        self._lost = False
        self.id = b""
        self.rewinds = False
        """Whether the node may hold positions beyond those that the next frame starts at."""
        self.recoveries = 0
        self.traffic = Traffic()

    @property
    def terms(self) -> Accept:
        """What its node accepted it with. Raises `NotRunning`."""
        if self._accept is None or self._closed:
            raise NotRunning("the session is not open")
        return self._accept

    async def open(self) -> None:
        """Open it, and keep its lease from now on. Raises `RemoteError`."""
        await self._open_anywhere()
        self._wires.counts.open += 1
        self._renewing = self._wires.background.start(self._renew(), "fedsea lease")

    def close(self) -> None:
        """Free it; nothing is awaited, so that whoever is cancelled frees its KV at once."""
        self._closed = True
        if self._renewing is not None:
            self._renewing.cancel()
            self._wires.counts.open -= 1
        self._leave_path()
        self._tell_closed()

    def _leave_path(self) -> None:
        if self._path is not None:
            self._path.close()
            self._path = None

    def _tell_closed(self) -> None:
        with suppress(NotRunning):  # then the lease frees it
            self._wires.requests.close(self.id)

    async def _open_anywhere(self) -> None:
        """Open on the node that the broker names, and on another where that one is just gone."""
        for _ in range(_RECOVERIES):
            with suppress(SessionLost, SessionUnknown):
                return await self._open()
        raise SessionLost(f"the node of a session was gone {_RECOVERIES} times as it opened")

    async def _open(self) -> None:
        """Open under a new id, so that nothing of an older session can be mistaken for this one."""
        self._leave_path()
        self._wires.requests.forget(self.id)
        self.id = self._wires.entropy(SESSION_BYTES)
        try:
            reply = await self._wires.requests.ask(
                Kind.OPEN,
                self._asked,
                session=self.id,
                traffic=self.traffic,
                trace=self._asked.trace,
            )
            self._accept = reply.body(Accept)
            _log.debug("session opened", node=self.terms.node, **trace_fields(self._asked.trace))
            self._path = await self._wires.direct.path(self.id, self._accept)
        except BaseException as error:
            self._tell_closed()
            if isinstance(error, SessionUnknown) and self._on_unknown is not None:
                await self._on_unknown()
            raise

    async def extend(
        self, start: int, count: int, returned: int, within_s: float = math.inf
    ) -> list[bytes]:
        """Have `count` positions from `start` on computed; the payload of the last `returned`.

        A lost node is replaced and brought up to date with what was sent before `start`.

        Raises:
            RemoteError: the node refused, did not answer for `within_s` or the client's patience,
                or no node could take the session over.
        """
        for _ in range(_RECOVERIES):
            try:
                if self._lost:
                    await self._recover(start)
                return await self._send(start, count, returned, within_s)
            except (SessionLost, SessionUnknown, PositionGap):
                # A gap: the node holds less than it has said. A session that it let go of was
                # opened anew by a copy of OPEN that came late, and is empty.
                self._lost = True
        raise SessionLost(f"the session was lost {_RECOVERIES} times in one step")

    async def _recover(self, cached: int) -> None:
        """Take the session to a node that is alive, by replaying the bytes already sent."""
        self.recoveries += 1
        self._wires.counts.failovers += 1
        _log.info("session lost; replaying it elsewhere", **trace_fields(self._asked.trace))
        self._tell_closed()
        await self._open()
        self.rewinds = False
        await self._send(0, cached, 0)
        self._lost = False

    async def _send(
        self, start: int, count: int, returned: int, within_s: float = math.inf
    ) -> list[bytes]:
        """Send `count` positions in frames that the node takes; the last outputs of them."""
        frame, end = self.terms.max_frame_positions, start + count
        outputs: list[list[bytes]] = []
        for at in range(start, end, frame):
            after = min(at + frame, end)
            wanted = min(after - at, max(0, after - (end - returned)))
            outputs.append(await self._extend(at, after - at, wanted, within_s))
        return [b"".join(parts) for parts in zip(*filter(None, outputs), strict=True)]

    async def _extend(self, cached: int, count: int, returned: int, within_s: float) -> list[bytes]:
        within_s = min(within_s, self._wires.requests.give_up_s)
        body = Extend(cached, count, returned, self.rewinds, round(1000 * within_s))
        reply = await self._ask(body, within_s)
        if reply.envelope.kind is not Kind.RESULT:
            raise MalformedFrame(f"a {reply.envelope.kind.name} frame in reply to an extend")
        result = reply.body(Result)
        if (result.cached, result.returned) != (cached + count, returned):
            raise MalformedFrame(
                f"result of {result.returned} outputs up to {result.cached}, "
                f"expected {returned} up to {cached + count}"
            )
        self._spec.check(reply.payload, returned)
        self.rewinds = False
        return list(reply.payload)

    async def _ask(self, body: Extend, within_s: float) -> Frame:
        """The answer to an extend frame, which waits for one before it that was given up."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + within_s
        while True:
            try:
                return await self._wires.requests.ask(
                    Kind.EXTEND,
                    body,
                    session=self.id,
                    payload=self._sent(body.cached, body.count),
                    traffic=self.traffic,
                    direct=None if self._path is None else await self._path.settled(),
                    give_up_s=within_s,
                    trace=self._asked.trace,
                )
            except PositionConflict:
                # A frame that rewinds conflicts only with one that is still being computed.
                if not body.rewinds or loop.time() > give_up_at:
                    raise
            await asyncio.sleep(_IN_FLIGHT_S)

    async def _renew(self) -> None:
        """Keep the lease of a session that nobody advances for a while."""
        while True:
            await asyncio.sleep(self.terms.lease_ms / 3000)
            if self._path is not None:
                self._path.try_again()
            # By the broker, which so knows of a session whose states do not pass it.
            with suppress(RemoteError):  # a lost session comes back when it is next advanced
                await self._wires.requests.ask(
                    Kind.RENEW, Nothing(), session=self.id, trace=self._asked.trace
                )
