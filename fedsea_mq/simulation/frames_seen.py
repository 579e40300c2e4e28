"""How a message reads in a trace: its kind, session and number, and what an extend is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fedsea_mq.errors import FedSeaError
from fedsea_mq.protocol.bundle import is_bundle, unbundled
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Extend, Result

# Kind, session and number of a request.
Numbered = tuple[Kind, bytes, int]
_REQUESTS: Final = frozenset({Kind.EXTEND, Kind.RENEW})


def numbered(message: Sequence[bytes]) -> list[Numbered]:
    """The requests of a session that a message holds."""
    messages = unbundled(message) if is_bundle(message) else [list(message)]
    envelopes = [Envelope.decode(parts[0]) for parts in messages]
    return [(e.kind, e.session, e.seq) for e in envelopes if e.kind in _REQUESTS]


def described(message: Sequence[bytes]) -> str:
    """One line of a message, or of each in a bundle."""
    try:
        parts = list(message)
        messages = unbundled(parts) if is_bundle(parts) else [parts]
        return "; ".join(_one(one) for one in messages)
    except FedSeaError as error:
        return f"unreadable ({error})"


def _one(parts: Sequence[bytes]) -> str:
    frame = Frame.read(parts)
    envelope = frame.envelope
    session = f" {envelope.session[:3].hex()}" if envelope.session else ""
    number = f" #{envelope.seq}" if envelope.seq else ""
    return f"{envelope.kind.name}{session}{number}{_about(frame)}"


def _about(frame: Frame) -> str:
    match frame.envelope.kind:
        case Kind.EXTEND:
            body = frame.body(Extend)
            rewinds = " rewinds" if body.rewinds else ""
            return f" {body.cached}+{body.count}{rewinds}"
        case Kind.RESULT:
            return f" to {frame.body(Result).cached}"
        case Kind.ERROR | Kind.BUSY:
            refusal = frame.refusal()
            return f" {type(refusal).__name__}: {refusal}"
        case _:
            return ""
