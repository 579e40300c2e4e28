"""What the members and the server say to each other: typed, bounded, validated as it is read.

Members are numbers from 1. Who speaks is not in a message: the connection says it. A masked vector
travels beside its `MaskedUpdate` as raw bytes: `elements + 1` little-endian uint64, exactly.
"""

from __future__ import annotations

from enum import Enum, auto
from hashlib import sha256
from itertools import pairwise
from typing import Annotated, Any, Final, Protocol, TypeVar, get_args

import msgpack
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from fedsea_mq.errors import AdapterError
from fedsea_mq.protocol.bounded import Count, Digest
from fedsea_mq.protocol.fields import decode_fields, encode_fields
from fedsea_mq.protocol.training_messages import Members
from fedsea_mq.training.adapter_layout import MAX_ELEMENTS, AdapterLayout
from fedsea_mq.training.averaging import MAX_WEIGHT
from fedsea_mq.training.round_plan import MAX_CLIENTS
from fedsea_mq.training.secure_aggregation.fixed_point import FixedPoint
from fedsea_mq.training.secure_aggregation.masking import KEY_BYTES, TAG_BYTES
from fedsea_mq.training.secure_aggregation.secret_sharing import SHARE_BYTES

CONTEXT_BYTES: Final = 32
NONCE_BYTES: Final = 16
BOX_BYTES: Final = 2 * SHARE_BYTES + TAG_BYTES
MAX_ABS: Final = 2.0**16
# The longest: 1024 boxes of 82 bytes and their field names.
MAX_MESSAGE_BYTES: Final = 1 << 18


def _bytes(count: int) -> Any:
    return Field(strict=True, min_length=count, max_length=count)


class _OfMember(Protocol):
    @property
    def member(self) -> int: ...


L = TypeVar("L", bound=_OfMember)


def _in_order(items: list[L]) -> list[L]:
    _rising([item.member for item in items])
    return items


def _rising(members: list[int]) -> list[int]:
    if any(one >= other for one, other in pairwise(members)):
        raise ValueError("members not in rising order")
    return members


class Stage(Enum):
    """What a round's members are to give next."""

    KEYS = auto()
    SHARES = auto()
    MASKED = auto()
    UNMASK = auto()
    DONE = auto()


Context = Annotated[bytes, _bytes(CONTEXT_BYTES)]
Key = Annotated[bytes, _bytes(KEY_BYTES)]
Member = Annotated[int, Field(strict=True, ge=1, le=MAX_CLIENTS)]
_MESSAGE: Final = ConfigDict(extra="forbid")
_MANY: Final = Field(max_length=MAX_CLIENTS)


@dataclass(frozen=True, slots=True, config=_MESSAGE)
class Terms:
    """What one secure round is about; server and members must hold the same.

    `nonce` is fresh for each round and attempt. `threshold` members must be left at each stage, and
    it is more than half of them, so that no two groups of members that do not overlap can each give
    a server what it must not have together. `max_weight` and `max_abs` bound each update, and with
    `members` the rounding: see `FixedPoint`.
    """

    round: Count
    attempt: Count
    nonce: Annotated[bytes, _bytes(NONCE_BYTES)]
    members: Annotated[int, Field(strict=True, ge=2, le=MAX_CLIENTS)]
    threshold: Annotated[int, Field(strict=True, ge=2, le=MAX_CLIENTS)]
    layout: Digest
    elements: Annotated[int, Field(strict=True, ge=1, le=MAX_ELEMENTS)]
    max_weight: Annotated[int, Field(strict=True, ge=1, le=MAX_WEIGHT)]
    max_abs: Annotated[float, Field(strict=True, gt=0.0, le=MAX_ABS, allow_inf_nan=False)]

    def __post_init__(self) -> None:
        """Raises `ValueError` if the threshold is not of more than half and at most all."""
        if not self.members < 2 * self.threshold <= 2 * self.members:
            raise ValueError("threshold is not of more than half of the members and at most all")

    @property
    def context(self) -> bytes:
        """A digest of all terms. Keys are derived from it and messages carry it."""
        fields = [getattr(self, name) for name in type(self).__slots__]
        return sha256(msgpack.packb(fields)).digest()

    def check(self, layout: AdapterLayout) -> None:
        """Raises `AdapterError` unless these terms are of adapters of this layout."""
        if (self.layout, self.elements) != (layout.digest, layout.elements):
            raise AdapterError(f"terms of other adapters than these {layout.elements} elements")

    @property
    def fixed_point(self) -> FixedPoint:
        """How updates become integers."""
        return FixedPoint(self.members, self.max_weight, self.max_abs)

    @property
    def vector_bytes(self) -> int:
        """The length of a masked vector on the wire."""
        return 8 * (self.elements + 1)


@dataclass(frozen=True, slots=True, config=_MESSAGE)
class Roster:
    """The members' names, in the order of their numbers; comes beside the terms.

    In another attempt a number may be somebody else's: by names a member knows whether it is asked
    to reveal for the same survivors again.
    """

    members: Members


@dataclass(frozen=True, slots=True, config=_MESSAGE)
class Keys:
    """A member's fresh public keys: one that boxes are sealed for, one that masks come from."""

    context: Context
    box_key: Key
    mask_key: Key


@dataclass(frozen=True, slots=True, config=_MESSAGE)
class MemberKeys:
    """One line of the key list."""

    member: Member
    box_key: Key
    mask_key: Key


@dataclass(frozen=True, slots=True, config=_MESSAGE)
class KeyList:
    """The public keys of all members that take part."""

    context: Context
    members: Annotated[list[MemberKeys], _MANY, AfterValidator(_in_order)]


@dataclass(frozen=True, slots=True, config=_MESSAGE)
class Box:
    """Two sealed shares; `member` is who they are for, or from whom, in a `ShareList`."""

    member: Member
    box: Annotated[bytes, _bytes(BOX_BYTES)]


@dataclass(frozen=True, slots=True, config=_MESSAGE)
class Shares:
    """A member's boxes for all others, and a digest by which its seed is known when rebuilt."""

    context: Context
    seed_digest: Annotated[bytes, _bytes(32)]
    boxes: Annotated[list[Box], _MANY, AfterValidator(_in_order)]


@dataclass(frozen=True, slots=True, config=_MESSAGE)
class ShareList:
    """The boxes for one member. Whose box is there takes part in the masks."""

    context: Context
    boxes: Annotated[list[Box], _MANY, AfterValidator(_in_order)]


@dataclass(frozen=True, slots=True, config=_MESSAGE)
class MaskedUpdate:
    """Comes with the masked vector."""

    context: Context


@dataclass(frozen=True, slots=True, config=_MESSAGE)
class UnmaskRequest:
    """Whose masked vectors arrived. The others of the masks are taken for lost."""

    context: Context
    survivors: Annotated[list[Member], _MANY, AfterValidator(_rising)]


@dataclass(frozen=True, slots=True, config=_MESSAGE)
class Share:
    """A share of a secret of `member`."""

    member: Member
    share: Annotated[bytes, _bytes(SHARE_BYTES)]


@dataclass(frozen=True, slots=True, config=_MESSAGE)
class Reveal:
    """Shares of the survivors' seeds and of the lost members' mask keys; of no member both."""

    context: Context
    seeds: Annotated[list[Share], _MANY, AfterValidator(_in_order)]
    mask_keys: Annotated[list[Share], _MANY, AfterValidator(_in_order)]


FromMember = Keys | Shares | MaskedUpdate | Reveal
FromServer = KeyList | ShareList | UnmaskRequest
Message = Terms | Roster | FromMember | FromServer
M = TypeVar("M", bound=Message)

_READERS: Final[dict[Any, TypeAdapter[Any]]] = {
    message: TypeAdapter(message) for message in get_args(Message)
}


def encode_message(message: Message) -> bytes:
    """A message as bytes; `MAX_MESSAGE_BYTES` at most."""
    return encode_fields(message)


def decode_message(message: type[M], part: bytes) -> M:
    """Read a message of the given type.

    Raises:
        LimitExceeded: larger than `MAX_MESSAGE_BYTES`.
        MalformedFrame: not msgpack, or a field is missing, unknown, out of range or mistyped.
    """
    read: M = decode_fields(
        _READERS[message], part, message.__name__, MAX_MESSAGE_BYTES, MAX_CLIENTS
    )
    return read
