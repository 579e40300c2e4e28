"""The one rule of progress: a session has `cached` positions, and frames that make them grow.

Prefill, chunk, decode step, replay and rewinding are all "make cached reach this number from these
states". A frame says how many positions must already be cached:

| frame starts at | same bytes as last time | verdict |
|---|---|---|
| `cached` | - | APPLY |
| before, and is the frame in flight | yes | IN_FLIGHT: its reply is on the way |
| before, and is the last frame applied | yes | REPLAY the reply that was sent |
| before, and rewinds | - | forget what is beyond, APPLY |
| before, anything else | no | `PositionConflict` |
| after `cached` | - | `PositionGap` |

Nothing older than the newest frame that was let in is ever computed.

So duplicates, reorderings and retries are harmless, and no position is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from hashlib import blake2b

from fedsea_mq.errors import LimitExceeded, PositionConflict, PositionGap
from fedsea_mq.protocol.messages import Extend


class Verdict(Enum):
    """What the trunk does with an extend frame."""

    APPLY = auto()
    IN_FLIGHT = auto()
    REPLAY = auto()


@dataclass(frozen=True, slots=True)
class _Mark:
    """Identity of a frame: where it starts, how far it goes, and what it carries."""

    body: Extend
    digest: bytes

    @classmethod
    def of(cls, body: Extend, payload: Sequence[bytes]) -> _Mark:
        digest = blake2b(digest_size=16)
        for part in payload:
            digest.update(part)
        return cls(body, digest.digest())


@dataclass(slots=True)
class TrunkPositions:
    """The trunk's side of one session."""

    max_positions: int
    max_frame_positions: int
    cached: int = 0
    reply: list[bytes] = field(default_factory=list)
    _in_flight: _Mark | None = None
    _applied: _Mark | None = None
    # The number of the newest frame that was let in; a session's frames are numbered upwards.
    _newest: int = -1

    @property
    def in_flight(self) -> bool:
        """Whether a frame of this session is being computed."""
        return self._in_flight is not None

    def receive(self, body: Extend, payload: Sequence[bytes], number: int) -> Verdict:
        """Judge an extend frame, by its sequence number.

        Raises:
            LimitExceeded: more positions than a frame or the session may hold.
            PositionGap: starts beyond `cached`.
            PositionConflict: other bytes for cached positions, or overtakes the one in flight.
        """
        self._check_limits(body)
        mark = _Mark.of(body, payload)
        if self._in_flight is not None:
            if mark == self._in_flight:
                return Verdict.IN_FLIGHT
            raise PositionConflict("another frame of this session is still in flight")
        if body.cached > self.cached:
            raise PositionGap(f"frame starts at position {body.cached}, cached are {self.cached}")
        if body.cached < self.cached:
            if mark == self._applied:
                return Verdict.REPLAY
            if not body.rewinds:
                raise PositionConflict(
                    f"frame re-sends positions from {body.cached} with other content, "
                    f"cached are {self.cached}"
                )
        if number < self._newest:
            raise PositionConflict("a newer frame of this session was here already")
        if body.cached < self.cached:
            self.cached, self._applied, self.reply = body.cached, None, []
        self._in_flight, self._newest = mark, number
        return Verdict.APPLY

    def _check_limits(self, body: Extend) -> None:
        if body.count > self.max_frame_positions:
            raise LimitExceeded(
                f"frame of {body.count} positions, at most {self.max_frame_positions}"
            )
        if body.cached + body.count > self.max_positions:
            raise LimitExceeded(
                f"positions up to {body.cached + body.count}, the session was opened "
                f"for {self.max_positions}"
            )
        if body.returned > body.count:
            raise LimitExceeded(f"{body.returned} outputs wanted of {body.count} positions")

    def applied(self, reply: list[bytes]) -> None:
        """The frame in flight was computed; `reply` is kept for a re-sent request."""
        assert self._in_flight is not None
        self.cached += self._in_flight.body.count
        self._applied, self._in_flight, self.reply = self._in_flight, None, reply

    def failed(self) -> None:
        """The frame in flight was not computed; it may be sent again."""
        self._in_flight = None


@dataclass(slots=True)
class StatesLog:
    """The payload bytes of a session's positions, from the first on, to be sent again if need be.

    `row_sizes` are the bytes of a position in each part.
    """

    row_sizes: tuple[int, ...]
    _columns: list[bytearray] = field(init=False)

    def __post_init__(self) -> None:
        self._columns = [bytearray() for _ in self.row_sizes]

    def record(self, start: int, payload: Sequence[bytes], skip: int = 0) -> None:
        """Log a payload from `start` on, but for its first `skip` positions.

        Whatever was logged after those is replaced.
        """
        keep = start + skip
        for column, size, part in zip(self._columns, self.row_sizes, payload, strict=True):
            del column[keep * size :]
            column.extend(part[skip * size :])

    def payload(self, start: int, count: int) -> list[bytes]:
        """The payload parts of `count` positions from `start`."""
        return [
            bytes(column[start * size : (start + count) * size])
            for column, size in zip(self._columns, self.row_sizes, strict=True)
        ]


@dataclass(slots=True)
class SentLog:
    """The client's memory of what it sent: the tokens, and for each position its payload bytes.

    The same token at the same position after the same prefix is re-sent byte for byte, because
    two noisy copies of one state can be averaged. Only the client ever holds this.
    """

    row_sizes: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    _states: StatesLog = field(init=False)

    def __post_init__(self) -> None:
        self._states = StatesLog(self.row_sizes)

    def known(self, start: int, tokens: Sequence[int]) -> int:
        """How many of `tokens`, placed at `start`, were already sent at those positions."""
        logged = self.tokens[start : start + len(tokens)]
        for count, (old, new) in enumerate(zip(logged, tokens, strict=False)):
            if old != new:
                return count
        return len(logged)

    def record(self, start: int, tokens: Sequence[int], payload: Sequence[bytes]) -> list[bytes]:
        """Log `tokens` at `start` with their fresh `payload`; return what must be sent.

        Positions that are known keep their old bytes; the rest, and whatever was logged after
        them, is replaced.
        """
        known = self.known(start, tokens)
        if known < len(tokens):
            del self.tokens[start + known :]
            self.tokens.extend(tokens[known:])
            self._states.record(start, payload, known)
        return self.payload(start, len(tokens))

    def payload(self, start: int, count: int) -> list[bytes]:
        """The payload parts of `count` positions from `start`, as they were first sent."""
        return self._states.payload(start, count)
