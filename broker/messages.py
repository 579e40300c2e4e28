"""Which messages the broker takes from whom, and how it says what to send. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from fedsea_mq.errors import MalformedFrame
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import MAX_PARTS, Frame
from fedsea_mq.security.identity import Identity, Party

Part = Any  # bytes, or a zero-copy frame of the socket library: only envelopes are ever read

NO_ENVELOPE: Final = Envelope(Kind.ERROR)
TO_SESSION: Final = frozenset(
    {
        Kind.EXTEND,
        Kind.RENEW,
        Kind.CLOSE,
        Kind.FORWARD,
        Kind.BACKWARD,
        Kind.STEP,
        Kind.BEGIN_ROUND,
        Kind.END_ROUND,
        Kind.ASK,
        Kind.UPDATE,
        Kind.SECURE,
    }
)
FROM_SESSION: Final = frozenset(
    {
        Kind.ACCEPT,
        Kind.BUSY,
        Kind.RESULT,
        Kind.RENEWED,
        Kind.CLOSE,
        Kind.ERROR,
        Kind.OUTPUTS,
        Kind.GRADIENT,
        Kind.STEPPED,
        Kind.ROUND_STATE,
        Kind.TASK,
        Kind.UPDATED,
        Kind.SECURED,
    }
)
REFUSALS: Final = frozenset({Kind.BUSY, Kind.ERROR})
# Who may connect where, and register as what.
CLIENT_PARTIES: Final = (Party.CLIENT, Party.TRAINER, Party.AGGREGATOR)
# A trunk node may take sessions that it holds on to the next stage, and do nothing else there.
OPENERS: Final = (*CLIENT_PARTIES, Party.TRUNK)
NODE_PARTIES: Final = (Party.TRUNK, Party.AGGREGATOR)
REGISTERS: Final[Mapping[Role, Party]] = {
    Role.TRUNK: Party.TRUNK,
    Role.AGGREGATOR: Party.AGGREGATOR,
}


class Side(Enum):
    """Which of the broker's two sockets."""

    CLIENTS = auto()
    NODES = auto()


@dataclass(frozen=True, slots=True)
class Send:
    """Send `parts` to `peer`."""

    side: Side
    peer: bytes
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class Message:
    """What came, from which connection, and whose it is."""

    peer: bytes
    envelope: Envelope
    parts: Sequence[Part]
    who: Identity

    @property
    def frame(self) -> Frame:
        """Envelope and body; what a relay has no need to look into is left out."""
        return Frame(self.envelope, self.parts[1])


def size_of(parts: Sequence[Part]) -> int:
    """Bytes of a message."""
    return sum(len(part) for part in parts)


def read_envelope(parts: Sequence[Part]) -> Envelope:
    """The envelope of a message off the wire. Raises `MalformedFrame`."""
    if not 2 <= len(parts) <= MAX_PARTS:
        raise MalformedFrame(f"frame of {len(parts)} parts, expected 2 to {MAX_PARTS}")
    return Envelope.decode(bytes(parts[0]))
