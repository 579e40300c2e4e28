"""Which request something belongs to: random ids that follow it through all parties.

The ids are those of W3C Trace Context, so that a caller's trace can be gone on with. A client draws
them, or takes its caller's trace id; the frame that opens a session carries them, and each party
keeps them with the session. Nothing about the text is in them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Self

from fedsea_mq.protocol.bounded import SPAN_ID_BYTES, TRACE_ID_BYTES

Entropy = Callable[[int], bytes]
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_INVALID_VERSION: Final = "ff"


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A trace, and one span of it: what somebody did for the request."""

    trace_id: bytes
    span_id: bytes

    @classmethod
    def from_traceparent(cls, header: str) -> Self | None:
        """Read a `traceparent` header; None where it is not a valid one, as W3C has it."""
        match = _TRACEPARENT.fullmatch(header.strip())
        if match is None or match[1] == _INVALID_VERSION or (match[1] == "00" and match[4]):
            return None
        trace_id, span_id = bytes.fromhex(match[2]), bytes.fromhex(match[3])
        return cls(trace_id, span_id) if any(trace_id) and any(span_id) else None

    @classmethod
    def from_wire(cls, ids: bytes) -> Self:
        """Read what an OPEN frame carries, which its body has checked."""
        return cls(ids[:TRACE_ID_BYTES], ids[TRACE_ID_BYTES:])

    @property
    def on_wire(self) -> bytes:
        """The ids as an OPEN frame carries them."""
        return self.trace_id + self.span_id

    @property
    def traceparent(self) -> str:
        """As the header of a further request."""
        return f"00-{self.trace_id.hex()}-{self.span_id.hex()}-01"


# Of the request that this task works for, if somebody above has said so: read when a generation,
# a conversation or a session begins.
CALLER: ContextVar[TraceContext | None] = ContextVar("fedsea caller", default=None)


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """A client's request: its own span, and that of its caller, if it has one."""

    own: TraceContext
    caller: TraceContext | None = None

    @classmethod
    def begin(cls, entropy: Entropy) -> Self:
        """A new span, in the caller's trace if there is one."""
        caller = CALLER.get()
        trace_id = entropy(TRACE_ID_BYTES) if caller is None else caller.trace_id
        return cls(TraceContext(trace_id, entropy(SPAN_ID_BYTES)), caller)

    def below(self, entropy: Entropy) -> Self:
        """A request that is part of this one."""
        return type(self)(TraceContext(self.own.trace_id, entropy(SPAN_ID_BYTES)), self.own)


def trace_fields(ids: bytes | None) -> dict[str, str]:
    """The field of a log line about a session whose OPEN carried this; none, without."""
    return {} if ids is None else {"trace_id": ids[:TRACE_ID_BYTES].hex()}
