"""The envelope: the one part of a frame that the broker reads.

A frame is a ZeroMQ multipart message: part 0 the envelope, part 1 the body, parts 2... raw tensor
buffers. The envelope is a small msgpack array, so that relaying costs one short decode whatever
the payload weighs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import msgpack

from fedsea_mq.errors import MalformedFrame, UnsupportedVersion

PROTOCOL_VERSION: Final = 10
SESSION_BYTES: Final = 16
NO_SESSION: Final = b""
MAX_ENVELOPE_BYTES: Final = 64
_MAX_SEQ: Final = 2**63 - 1


class Kind(IntEnum):
    """What a frame says. The direction is fixed for each: see `docs/architecture.md`."""

    # client <-> trunk, relayed
    OPEN = 1
    ACCEPT = 2
    BUSY = 3
    EXTEND = 4
    RESULT = 5
    RENEW = 8
    RENEWED = 9
    CLOSE = 10
    ERROR = 11
    # any of the others, many at once (see `bundle`)
    BUNDLE = 12
    # with the broker itself
    REGISTER = 20
    REGISTERED = 21
    HEARTBEAT = 22
    LEAVE = 23
    STATUS = 24
    STATUS_REPORT = 25
    # training: client -> trunk or aggregator, aggregator -> trunk
    ENLIST = 30
    # client <-> trunk, relayed
    FORWARD = 31
    OUTPUTS = 32
    BACKWARD = 33
    GRADIENT = 34
    STEP = 35
    STEPPED = 36
    # aggregator <-> trunk, relayed
    BEGIN_ROUND = 40
    END_ROUND = 41
    ROUND_STATE = 42
    # client <-> aggregator, relayed
    ASK = 50
    TASK = 51
    UPDATE = 52
    UPDATED = 53
    SECURE = 54
    SECURED = 55


@dataclass(frozen=True, slots=True)
class Envelope:
    """Kind, session and sequence number of one frame.

    `session` is 16 random bytes chosen by the client (empty on frames with the broker itself);
    `seq` pairs a reply with its request.
    """

    kind: Kind
    session: bytes = NO_SESSION
    seq: int = 0

    def encode(self) -> bytes:
        """The envelope as msgpack bytes."""
        encoded: bytes = msgpack.packb((PROTOCOL_VERSION, int(self.kind), self.session, self.seq))
        return encoded

    @classmethod
    def decode(cls, data: bytes) -> Envelope:
        """Read an envelope off the wire.

        Raises:
            MalformedFrame: not an envelope.
            UnsupportedVersion: an envelope of another protocol version.
        """
        if len(data) > MAX_ENVELOPE_BYTES:
            raise MalformedFrame(f"envelope of {len(data)} bytes, at most {MAX_ENVELOPE_BYTES}")
        try:
            fields = msgpack.unpackb(data, max_array_len=8, max_map_len=0, max_ext_len=0)
        except Exception as error:  # msgpack raises a dozen unrelated types on bad bytes
            raise MalformedFrame("envelope is not msgpack") from error
        if not isinstance(fields, list) or not fields or type(fields[0]) is not int:
            raise MalformedFrame("envelope is not an array that starts with a version")
        if fields[0] != PROTOCOL_VERSION:
            raise UnsupportedVersion(
                f"protocol version {fields[0]}, this process speaks {PROTOCOL_VERSION}"
            )
        return cls._from_fields(fields[1:])

    @classmethod
    def _from_fields(cls, fields: list[object]) -> Envelope:
        if len(fields) != 3:
            raise MalformedFrame(f"envelope of {len(fields) + 1} fields, expected 4")
        kind, session, seq = fields
        known = _KINDS.get(kind) if type(kind) is int else None
        if known is None:
            raise MalformedFrame("envelope of an unknown kind")
        if not isinstance(session, bytes) or len(session) not in (0, SESSION_BYTES):
            raise MalformedFrame(f"session id is not {SESSION_BYTES} bytes")
        if type(seq) is not int or not 0 <= seq <= _MAX_SEQ:
            raise MalformedFrame("sequence number is not a non-negative 63-bit integer")
        return cls(known, session, seq)


_KINDS: Final = {int(kind): kind for kind in Kind}
