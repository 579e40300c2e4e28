"""Many small messages to one peer as a single one.

A trunk step answers many sessions at once, and the answers bring their next requests at once. A
socket charges by the message, so what goes to one peer in one breath goes as one: an envelope of
kind BUNDLE, a manifest of the parts' sizes, and the parts in a row. What a bundle holds are whole
messages, which mean what they would have meant alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgpack

from fedsea_mq.errors import FedSeaError, LimitExceeded, MalformedFrame
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import MAX_PARTS, Parts

MAX_BUNDLED: Final = 256
MAX_BUNDLE_BYTES: Final = 1 << 18
_ENVELOPE: Final = Envelope(Kind.BUNDLE).encode()
_MIN_PARTS: Final = 2
# From here on copying costs more than a message of its own.
_LARGE_BYTES: Final = 1 << 16
# For each message the number of its parts, and the size of each: five bytes at most an integer.
_MAX_MANIFEST_BYTES: Final = 5 * (MAX_BUNDLED * (1 + MAX_PARTS) + 1)


def grouped(messages: Sequence[Parts]) -> Iterator[list[Parts]]:
    """Cut messages into runs that fit a bundle each; a large one goes alone, and is not copied."""
    run: list[Parts] = []
    held = 0
    for message in messages:
        size = sum(len(part) for part in message)
        alone = size >= _LARGE_BYTES
        if run and (alone or len(run) == MAX_BUNDLED or held + size > MAX_BUNDLE_BYTES):
            yield run
            run, held = [], 0
        if alone:
            yield [message]
        else:
            run.append(message)
            held += size
    if run:
        yield run


def bundled(run: Sequence[Parts]) -> Parts:
    """One message that stands for a run of `grouped`; a message alone stays as it is."""
    if len(run) == 1:
        return run[0]
    sizes = [size for message in run for size in (len(message), *map(len, message))]
    manifest: bytes = msgpack.packb(sizes)
    return [_ENVELOPE, manifest, b"".join(part for message in run for part in message)]


def is_bundle(parts: Sequence[bytes]) -> bool:
    """Whether a message off the wire says that it is a bundle."""
    return len(parts[0]) == len(_ENVELOPE) and bytes(parts[0]) == _ENVELOPE


def unbundled(parts: Sequence[bytes]) -> list[Parts]:
    """The messages of a bundle off the wire.

    Raises:
        LimitExceeded: more messages or bytes than a bundle may hold.
        MalformedFrame: the parts are not what their manifest says.
    """
    if len(parts) != 3:
        raise MalformedFrame(f"bundle of {len(parts)} parts, expected 3")
    if len(parts[1]) > _MAX_MANIFEST_BYTES or len(parts[2]) > MAX_BUNDLE_BYTES:
        raise LimitExceeded(f"bundle of {len(parts[1])} + {len(parts[2])} bytes")
    manifest, contents = bytes(parts[1]), bytes(parts[2])
    messages: list[Parts] = []
    start = 0
    for sizes in _sizes(manifest):
        if len(messages) == MAX_BUNDLED:
            raise LimitExceeded(f"bundle of more than {MAX_BUNDLED} messages")
        message = []
        for size in sizes:
            message.append(contents[start : start + size])
            start += size
        messages.append(message)
    if start != len(contents):
        raise MalformedFrame(f"bundle of {len(contents)} bytes, its manifest says {start}")
    return messages


def unbundled_from(
    message: list[Any], refuse: Callable[[bytes, FedSeaError], None]
) -> Sequence[list[Any]]:
    """What a message off a socket of many peers stands for, each behind the sender's address.

    Nothing, and a call of `refuse` with the address, for a bundle that cannot be read.
    """
    peer, *parts = message
    if not is_bundle(parts):
        return [message]
    try:
        return [[peer, *one] for one in unbundled(parts)]
    except FedSeaError as error:
        refuse(bytes(peer), error)
        return []


def _sizes(manifest: bytes) -> Iterator[list[int]]:
    fields = _integers(manifest)
    at = 0
    while at < len(fields):
        count = fields[at]
        sizes = fields[at + 1 : at + 1 + count]
        if not _MIN_PARTS <= count <= MAX_PARTS or len(sizes) != count:
            raise MalformedFrame("bundle with a message of a wrong number of parts")
        yield sizes
        at += 1 + count


def _integers(manifest: bytes) -> list[int]:
    most = MAX_BUNDLED * (1 + MAX_PARTS)
    try:
        # msgpack allocates an array as its header declares: first see that all of it is there.
        contents = msgpack.Unpacker(max_buffer_size=len(manifest) or 1)
        contents.feed(manifest)
        contents.skip()
        fields = msgpack.unpackb(manifest, max_array_len=most, max_map_len=0, max_ext_len=0)
    except Exception as error:  # msgpack raises a dozen unrelated types on bad bytes
        raise MalformedFrame("manifest is not msgpack") from error
    if not isinstance(fields, list) or not all(
        type(size) is int and 0 <= size <= MAX_BUNDLE_BYTES for size in fields
    ):
        raise MalformedFrame("manifest is not an array of sizes")
    return fields
