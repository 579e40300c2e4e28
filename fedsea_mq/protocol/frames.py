"""A whole frame: envelope, body and payload parts, as it enters and leaves a socket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from fedsea_mq.errors import FedSeaError, MalformedFrame
from fedsea_mq.protocol.envelope import NO_SESSION, Envelope, Kind
from fedsea_mq.protocol.messages import (
    Body,
    BusyNotice,
    ErrorNotice,
    decode_body,
    encode_body,
    error_notice,
    raised_from,
)

# Envelope, body, data, scales.
MAX_PARTS: Final = 4
_ZMTP_SHORT_BYTES: Final = 255

B = TypeVar("B", bound=Body)
Parts = list[bytes]


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame whose body is still packed: the reader names the type that it expects.

    `again` is one that is known to be a copy of a frame that was here before, bit by bit.
    """

    envelope: Envelope
    packed_body: bytes
    payload: Sequence[bytes] = ()
    again: bool = False

    @classmethod
    def build(
        cls,
        kind: Kind,
        body: Body,
        *,
        session: bytes = NO_SESSION,
        seq: int = 0,
        payload: Sequence[bytes] = (),
    ) -> Frame:
        """A frame to send."""
        return cls(Envelope(kind, session, seq), encode_body(body), payload)

    @classmethod
    def error(cls, error: FedSeaError, envelope: Envelope) -> Frame:
        """The reply that tells `error` to whoever sent `envelope`."""
        notice = error_notice(error)
        kind = Kind.BUSY if isinstance(notice, BusyNotice) else Kind.ERROR
        return cls.build(kind, notice, session=envelope.session, seq=envelope.seq)

    @classmethod
    def closing(cls, reason: FedSeaError, session: bytes) -> Frame:
        """Tells a client that its session is over; a client closes with `Nothing` instead."""
        return cls.build(Kind.CLOSE, error_notice(reason), session=session)

    @classmethod
    def read(cls, parts: Sequence[bytes]) -> Frame:
        """Read a frame off the wire; the body is read later, by `body`.

        Raises:
            MalformedFrame, UnsupportedVersion: the parts are not a frame of this protocol.
        """
        if not 2 <= len(parts) <= MAX_PARTS:
            raise MalformedFrame(f"frame of {len(parts)} parts, expected 2 to {MAX_PARTS}")
        return cls(Envelope.decode(parts[0]), parts[1], parts[2:])

    def body(self, expected: type[B]) -> B:
        """The body, read as the `expected` type (see `decode_body`)."""
        return decode_body(expected, self.packed_body)

    def refusal(self) -> FedSeaError | None:
        """The error this frame tells, if it is an error, busy or closing frame."""
        if self.envelope.kind in (Kind.ERROR, Kind.CLOSE):
            return raised_from(self.body(ErrorNotice))
        if self.envelope.kind is Kind.BUSY:
            return raised_from(self.body(BusyNotice))
        return None

    def parts(self) -> Parts:
        """The multipart message."""
        return [self.envelope.encode(), self.packed_body, *self.payload]


def wire_bytes(parts: Sequence[bytes]) -> int:
    """Bytes of a multipart message on the wire, ZMTP's framing of each part included."""
    return sum(len(part) + (2 if len(part) <= _ZMTP_SHORT_BYTES else 9) for part in parts)
