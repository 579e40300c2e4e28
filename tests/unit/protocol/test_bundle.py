"""Bundles: what goes in comes out, large messages go alone, and nothing false is believed."""

from __future__ import annotations

import random
import tracemalloc

import msgpack
import pytest

from fedsea_mq.errors import LimitExceeded, MalformedFrame, RemoteError
from fedsea_mq.protocol.bundle import (
    MAX_BUNDLE_BYTES,
    MAX_BUNDLED,
    bundled,
    grouped,
    is_bundle,
    unbundled,
)
from fedsea_mq.protocol.frames import Parts
from tests.property.mutations import mutated


def message(number: int, size: int = 100) -> Parts:
    return [b"envelope %d" % number, b"body", bytes(size)]


def crossed(messages: list[Parts]) -> list[Parts]:
    """What arrives of messages that are sent together."""
    sent = [bundled(run) for run in grouped(messages)]
    return [one for parts in sent for one in (unbundled(parts) if is_bundle(parts) else [parts])]


@pytest.mark.parametrize("count", [0, 1, 2, 3, MAX_BUNDLED, MAX_BUNDLED + 1, 1000])
def test_all_messages_arrive_whole_and_in_order(count: int) -> None:
    messages = [message(n, size=n % 7) for n in range(count)]
    assert crossed(messages) == messages


def test_large_messages_go_alone_and_in_their_place() -> None:
    messages = [message(0), message(1), message(2, 1 << 17), message(3), message(4)]
    runs = list(grouped(messages))
    assert [len(run) for run in runs] == [2, 1, 2]
    assert crossed(messages) == messages
    assert bundled(runs[1]) is messages[2]


def test_no_run_is_more_than_a_bundle_may_hold() -> None:
    messages = [message(n, size=60_000) for n in range(100)]
    for run in grouped(messages):
        assert len(run) <= MAX_BUNDLED
        assert sum(len(part) for parts in run for part in parts) <= MAX_BUNDLE_BYTES
    assert crossed(messages) == messages


def test_a_message_alone_is_sent_as_it_is() -> None:
    assert bundled([message(7)]) == message(7)
    assert not is_bundle(message(7))


def bundle_with(sizes: object, contents: bytes) -> Parts:
    (envelope, *_) = bundled([message(0), message(1)])
    return [envelope, msgpack.packb(sizes), contents]


@pytest.mark.parametrize(
    ("sizes", "contents"),
    [
        ([2, 1, 1], b"abc"),  # a byte over
        ([2, 1, 3], b"abc"),  # a byte short
        ([1, 3], b"abc"),  # too few parts
        ([5, 1, 1, 1, 0, 0], b"abc"),  # too many
        ([3, 1, 1], b"ab"),  # the manifest ends early
        ([2, -1, 4], b"abc"),
        ([2, 1.0, 2], b"abc"),
        ([2, True, 2], b"abc"),
        ({"a": 1}, b"abc"),
        ("abc", b"abc"),
        ([2, 1, 2**40], b"abc"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(sizes: object, contents: bytes) -> None:
    with pytest.raises(MalformedFrame):
        unbundled(bundle_with(sizes, contents))


def test_more_than_a_bundle_may_hold_is_refused_unread() -> None:
    with pytest.raises(LimitExceeded):
        unbundled(bundle_with([2, 0, MAX_BUNDLE_BYTES + 1], bytes(MAX_BUNDLE_BYTES + 1)))
    many = [0] * (8 * MAX_BUNDLED)
    with pytest.raises(RemoteError):
        unbundled(bundle_with(many, b""))


def test_a_manifest_that_is_not_msgpack_is_refused() -> None:
    (envelope, _, contents) = bundled([message(0), message(1)])
    with pytest.raises(MalformedFrame):
        unbundled([envelope, b"\xc1", contents])
    with pytest.raises(MalformedFrame):
        unbundled([envelope, contents])


def test_ten_thousand_mutated_bundles_are_read_or_refused_by_type() -> None:
    rng = random.Random(5)
    whole = bundled([message(n, size=n) for n in range(5)])
    read = 0
    for _ in range(10_000):
        parts = mutated(rng, whole, [whole])
        if not parts or not is_bundle(parts):
            continue
        try:
            messages = unbundled(parts)
        except RemoteError:
            continue
        read += 1
        assert sum(len(part) for one in messages for part in one) == len(parts[2])
    assert read


def test_more_messages_than_a_bundle_may_hold_are_refused() -> None:
    count = MAX_BUNDLED + 1
    with pytest.raises(LimitExceeded):
        unbundled(bundle_with([2, 0, 0] * count, b""))
    assert len(unbundled(bundle_with([2, 0, 0] * MAX_BUNDLED, b""))) == MAX_BUNDLED


def test_a_manifest_that_promises_what_it_does_not_hold_costs_no_memory() -> None:
    nested = b"\xdc\x04\xff" * 2000  # arrays of 1,279 inside one another
    (envelope, *_) = bundled([message(0), message(1)])
    tracemalloc.start()
    try:
        with pytest.raises(MalformedFrame):
            unbundled([envelope, nested, b"abc"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
