"""Types of the fields of bodies: each with its bounds, strict, nothing coerced."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import AfterValidator, ConfigDict, Field

from fedsea_mq.protocol.endpoint import MAX_ENDPOINT_CHARS, reachable
from fedsea_mq.protocol.envelope import SESSION_BYTES

MAX_POSITIONS: Final = 1 << 20
MIN_PAUSE_MS: Final = 10
PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
TRACE_ID_BYTES: Final = 16
SPAN_ID_BYTES: Final = 8


def _two_ids(ids: bytes) -> bytes:
    if not (any(ids[:TRACE_ID_BYTES]) and any(ids[TRACE_ID_BYTES:])):
        raise ValueError("an id of zeros")
    return ids


Positions = Annotated[int, Field(strict=True, ge=0, le=MAX_POSITIONS)]
Count = Annotated[int, Field(strict=True, ge=0, le=2**53)]
Blocks = Annotated[int, Field(strict=True, ge=0, le=1024)]
Hidden = Annotated[int, Field(strict=True, ge=1, le=1 << 16)]
Digest = Annotated[str, Field(strict=True, pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9_.:-]{1,64}$")]
Signature = Annotated[bytes, Field(strict=True, max_length=SIGNATURE_BYTES)]
SessionId = Annotated[bytes, Field(strict=True, min_length=SESSION_BYTES, max_length=SESSION_BYTES)]
Endpoint = Annotated[
    str, Field(strict=True, max_length=MAX_ENDPOINT_CHARS), AfterValidator(reachable)
]
PublicKeyBytes = Annotated[
    bytes, Field(strict=True, min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)
]
# A trace's id and then a span's, as W3C Trace Context has them.
TraceIds = Annotated[
    bytes,
    Field(
        strict=True,
        min_length=TRACE_ID_BYTES + SPAN_ID_BYTES,
        max_length=TRACE_ID_BYTES + SPAN_ID_BYTES,
    ),
    AfterValidator(_two_ids),
]
# Whose a session is: the id of a key, or what the broker calls a connection.
OwnerId = Annotated[bytes, Field(strict=True, max_length=16)]
ClientId = Annotated[bytes, Field(strict=True, max_length=255)]
Milliseconds = Annotated[int, Field(strict=True, ge=0, le=86_400_000)]
# How long to wait before asking again: never so short that asking becomes a flood.
Pause = Annotated[int, Field(strict=True, ge=MIN_PAUSE_MS, le=86_400_000)]
Share = Annotated[float, Field(strict=True, ge=0.0, le=1.0)]
Rate = Annotated[float, Field(strict=True, ge=0.0, le=1e12)]


class Role(StrEnum):
    """What a node does, and with which of a run's two a training session is."""

    TRUNK = "trunk"
    AGGREGATOR = "aggregator"


# Strictness stands in the types: on the whole body it would refuse the map that arrives.
BODY: Final = ConfigDict(extra="forbid")
