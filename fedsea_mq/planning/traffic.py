"""The bytes that one request puts on the wire: its own frames are built, and weighed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fedsea_mq.protocol.bounded import SPAN_ID_BYTES, TRACE_ID_BYTES
from fedsea_mq.protocol.envelope import SESSION_BYTES, Kind
from fedsea_mq.protocol.frames import Frame, wire_bytes
from fedsea_mq.protocol.messages import Accept, Body, Extend, Open, Result
from fedsea_mq.protocol.payload import PayloadSpec

_ANY_SESSION: Final = bytes(SESSION_BYTES)
_ANY_TRACE: Final = b"\xff" * (TRACE_ID_BYTES + SPAN_ID_BYTES)
_ANY_FINGERPRINT: Final = "0" * 64


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` positions behind `start` cached ones, and how many outputs come back."""

    start: int
    count: int
    returned: int


@dataclass(frozen=True, slots=True)
class Bytes:
    """There and back, ZeroMQ's framing included."""

    up: int
    down: int

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(self.up + other.up, self.down + other.down)


@dataclass(frozen=True, slots=True)
class Terms:
    """What client and node have agreed on, as far as frames show it."""

    spec: PayloadSpec
    frame_positions: int
    lease_ms: int
    give_up_ms: int
    node: str = "trunk-0"


def prompt_chunks(prompt: int, frame_positions: int, *, tail_caches: bool) -> list[Chunk]:
    """How a prompt is cut into frames: the last is as long as may be.

    A tail with blocks needs the outputs of all positions; without, of the last one of a chunk.
    """
    first = max(0, prompt - frame_positions)
    starts = [*range(0, first, frame_positions), first]
    ends = [*starts[1:], prompt]
    return [
        Chunk(start, end - start, end - start if tail_caches else 1)
        for start, end in zip(starts, ends, strict=True)
    ]


class RequestTraffic:
    """One request in a session of its own, the first of its client, unsealed.

    Later ones have longer numbers: a few bytes a frame.
    """

    def __init__(self, terms: Terms, chunks: list[Chunk], new: int) -> None:
        self._terms = terms
        prompt = sum(chunk.count for chunk in chunks)
        self.opening = self._opening(prompt + new - 1)
        self.chunks = [self._extension(chunk, n) for n, chunk in enumerate(chunks, start=2)]
        number = 2 + len(chunks)
        self.steps = sum(
            (self._extension(Chunk(prompt + n, 1, 1), number + n) for n in range(new - 1)),
            Bytes(0, 0),
        )

    @property
    def whole(self) -> Bytes:
        """From opening the session to the last token."""
        return sum([*self.chunks, self.steps], self.opening)

    def _opening(self, positions: int) -> Bytes:
        terms = self._terms
        asked = Open(_ANY_FINGERPRINT, positions, terms.spec.dtype, trace=_ANY_TRACE)
        told = Accept(terms.node, terms.frame_positions, terms.lease_ms)
        return Bytes(_weighed(Kind.OPEN, asked, 1), _weighed(Kind.ACCEPT, told, 1))

    def _extension(self, chunk: Chunk, number: int) -> Bytes:
        spec, after = self._terms.spec, chunk.start + chunk.count
        within_ms = self._terms.give_up_ms
        asked = Extend(chunk.start, chunk.count, chunk.returned, within_ms=within_ms)
        told = Result(after, chunk.returned)
        return Bytes(
            _weighed(Kind.EXTEND, asked, number, spec.part_sizes(chunk.count)),
            _weighed(Kind.RESULT, told, number, spec.part_sizes(chunk.returned)),
        )


def _weighed(kind: Kind, body: Body, number: int, sizes: tuple[int, ...] = ()) -> int:
    payload = [bytes(size) for size in sizes]
    frame = Frame.build(kind, body, session=_ANY_SESSION, seq=number, payload=payload)
    return wire_bytes(frame.parts())
