"""A stage's sessions with the next one, whose client it is: for each of its own sessions, one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final

from fedsea_mq.errors import (
    AdapterMismatch,
    AdapterUnknown,
    Busy,
    DeadlineExceeded,
    FedSeaError,
    LimitExceeded,
    NotRunning,
    SessionLost,
    StepFailed,
)
from fedsea_mq.log import get_logger
from fedsea_mq.protocol.adapter_ref import AdapterRef
from fedsea_mq.protocol.messages import Open
from fedsea_mq.protocol.positions import StatesLog
from fedsea_mq.protocol.stage import Onward
from fedsea_mq.serving.trunk_sessions import Compute
from nodes.remote_session import RemoteSession
from nodes.session_wires import SessionWires

Settle = Callable[[Compute, list[bytes] | FedSeaError], None]
_log = get_logger(__name__)
# What of the next stage's refusals is for the session's client; the rest is between the stages.
_FOR_THE_CLIENT: Final = (
    AdapterMismatch,
    AdapterUnknown,
    Busy,
    DeadlineExceeded,
    LimitExceeded,
    SessionLost,
)


class NextStage:
    """Has what a stage computed computed on, by nodes that serve the blocks after its own.

    Those begin at block `first` of the trunk with this fingerprint; `adapters` are the stage's, by
    name. `settle` is called with each piece of work and the last stage's outputs of it, or the
    error. `make_known` tells all brokers of the stage's sessions, which may speak by another than
    the stage does itself.
    """

    def __init__(
        self,
        wires: SessionWires,
        fingerprint: str,
        first: int,
        adapters: Mapping[str, AdapterRef],
        settle: Settle,
        *,
        make_known: Callable[[], Awaitable[None]],
    ) -> None:
        self._wires = wires
        self._fingerprint = fingerprint
        self._first = first
        self._adapters = adapters
        self._settle = settle
        self._make_known = make_known
        self._passages: dict[bytes, _Passage] = {}

    def expect(self, work: Compute) -> None:
        """Open the session that the work's states will go on in, while they are computed."""
        session = work.envelope.session
        if session not in self._passages:
            self._passages[session] = _Passage(
                self._wires, self._asked(work), work, self._make_known
            )

    def _asked(self, work: Compute) -> Open:
        return Open(
            fingerprint=self._fingerprint,
            max_positions=work.positions.max_positions,
            dtype=work.spec.dtype,
            urgency=work.owner.urgency.value,
            adapter=None if work.adapter is None else self._adapters[work.adapter],
            onward=Onward(self._first, work.envelope.session),
            trace=work.trace,
        )

    def forward(self, work: Compute, states: list[bytes], deadline: float) -> None:
        """Send the states of all the work's positions on; `settle` follows, by the deadline."""
        passage = self._passages.get(work.envelope.session)
        # Else the session ended meanwhile, and there may be another of its id.
        if passage is not None and passage.positions is work.positions:
            going_on = self._go_on(passage, work, states, deadline)
            passage.going_on = self._wires.background.start(going_on, "fedsea next stage")

    async def _go_on(
        self, passage: _Passage, work: Compute, states: list[bytes], deadline: float
    ) -> None:
        outcome: list[bytes] | FedSeaError
        try:
            outcome = await passage.extend(work, states, deadline)
        except FedSeaError as error:
            if passage.was_refused:
                # Nothing went on yet: the next frame may find it otherwise.
                self._passages.pop(work.envelope.session, None)
            outcome = _told(error)
        with suppress(NotRunning):  # the node is stopping
            self._settle(work, outcome)

    def end(self, session: bytes) -> None:
        """A session is over: so is the one that it went on in."""
        passage = self._passages.pop(session, None)
        if passage is not None:
            passage.close()

    def end_all(self) -> None:
        """The stage stops."""
        for session in list(self._passages):
            self.end(session)


class _Passage:
    """One session's way through the next stage, opened as it is made."""

    def __init__(
        self,
        wires: SessionWires,
        asked: Open,
        work: Compute,
        make_known: Callable[[], Awaitable[None]],
    ) -> None:
        self.positions = work.positions
        self._log = StatesLog(work.spec.part_sizes(1))
        self._remote = RemoteSession(wires, asked, work.spec, self._log.payload, make_known)
        self._refusal: FedSeaError | None = None
        self._opening = wires.background.start(self._open(), "fedsea next stage opening")
        self.going_on: asyncio.Task[None] | None = None

    @property
    def was_refused(self) -> bool:
        """Whether there is no such session after all."""
        return self._refusal is not None

    async def _open(self) -> None:
        try:
            await self._remote.open()
        except FedSeaError as error:
            self._refusal = error

    async def extend(self, work: Compute, states: list[bytes], deadline: float) -> list[bytes]:
        """The last stage's outputs of the work. Raises `RemoteError`."""
        if not self._opening.done():
            await asyncio.wait([self._opening])
        if self._refusal is not None:
            raise self._refusal
        within_s = deadline - asyncio.get_running_loop().time()
        if within_s <= 0:
            raise DeadlineExceeded("the deadline passed between two stages")
        body = work.body
        self._log.record(body.cached, states)
        self._remote.rewinds |= body.rewinds
        try:
            return await self._remote.extend(body.cached, body.count, body.returned, within_s)
        except BaseException:
            # What was sent is cached there by now, or will be soon.
            self._remote.rewinds = True
            raise

    def close(self) -> None:
        """End it; nothing is awaited."""
        if self.going_on is not None:
            self.going_on.cancel()
        if self._opening.done() and self._refusal is None:
            self._remote.close()
        else:
            self._opening.cancel()


def _told(error: FedSeaError) -> FedSeaError:
    if isinstance(error, _FOR_THE_CLIENT):
        return error
    _log.warning("the next stage failed", error=type(error).__name__)
    return StepFailed(f"the next stage failed: {type(error).__name__}")
