"""Typed records as msgpack maps: packed, and read again within bounds.

Bounds stand in the types of a record's fields (pydantic); what bounds the reading itself stands
here. Nothing is coerced, nothing unknown is let through, and errors hold no values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgpack
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from fedsea_mq.errors import MalformedFrame
from fedsea_mq.protocol.compression import pack, unpack

MAX_MESSAGE_CHARS: Final = 500
# A list where none belongs: so short that its field can be named, so short that it costs nothing.
STRAY_LIST: Final = 8
T = TypeVar("T")


def packed(record: Any) -> bytes:
    """A record (a slotted dataclass) as a msgpack map: the same bytes for equal records."""
    encoded: bytes = msgpack.packb(record, default=_fields)
    return encoded


def encode_fields(record: Any) -> bytes:
    """A record as a packed part."""
    return pack(packed(record))


def _fields(record: Any) -> dict[str, Any]:
    """A record, or one inside it, as a map: what `asdict` gives, without copying what it holds."""
    return {name: getattr(record, name) for name in type(record).__slots__}


def decode_fields(
    reader: TypeAdapter[T], part: bytes, what: str, max_bytes: int, max_array_len: int
) -> T:
    """Read a record off the wire; `what` names it in errors.

    Raises:
        LimitExceeded: larger than `max_bytes`.
        MalformedFrame: not msgpack, or a field is missing, unknown, out of range or mistyped.
    """
    fields = _unpack_map(unpack(part, max_bytes), max_array_len)
    try:
        return reader.validate_python(fields)
    except ValidationError as error:
        # Field names and rules only: the values stay out of messages and logs.
        wrong = "; ".join(
            f"{_where(item)}: {item['type']}"
            for item in error.errors(include_input=False, include_url=False)[:4]
        )
        raise MalformedFrame(f"{what}: {wrong}"[:MAX_MESSAGE_CHARS]) from None


def _where(item: ErrorDetails) -> str:
    """The path to a wrong field; the name of one we do not know is the sender's, and left out."""
    unknown = item["type"] == "unexpected_keyword_argument"
    known = item["loc"][:-1] if unknown else item["loc"]
    return ".".join(str(step) for step in known[:3]) or "a field"


def _unpack_map(data: bytes, max_array_len: int) -> Mapping[str, Any]:
    try:
        if max_array_len > STRAY_LIST:
            # msgpack allocates an array as its header declares: first see that all of it is there.
            contents = msgpack.Unpacker(max_buffer_size=len(data) or 1)
            contents.feed(data)
            contents.skip()
        fields = msgpack.unpackb(
            data,
            strict_map_key=True,
            max_array_len=max_array_len,
            max_map_len=64,
            max_ext_len=0,
        )
    except Exception as error:  # msgpack raises a dozen unrelated types on bad bytes
        raise MalformedFrame("body is not msgpack") from error
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise MalformedFrame("body is not a map of named fields")
    return fields
