"""Sealed frames: what opens them, what does not, and that no nonce seals two texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from fedsea_mq.errors import MalformedFrame, SealBroken
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Extend
from fedsea_mq.security.sealing import (
    OVERHEAD_BYTES,
    TAG_BYTES,
    WINDOW,
    CounterWindow,
    ReceiveKey,
    Seal,
    SendKey,
    is_sealed,
)

KEY, OTHER = b"k" * 32, b"o" * 32
FRAME = Frame.build(
    Kind.EXTEND,
    Extend(cached=0, count=2, returned=1),
    session=b"s" * 16,
    seq=7,
    payload=[b"states" * 30, b"scales"],
)


def test_what_is_sealed_opens_as_it_was_and_tells_nothing_but_its_length() -> None:
    sealed = SendKey(KEY).seal(FRAME)
    assert sealed.envelope == FRAME.envelope
    assert len(sealed.packed_body) == len(FRAME.packed_body) + OVERHEAD_BYTES
    assert [len(p) for p in sealed.payload] == [len(p) + TAG_BYTES for p in FRAME.payload]
    wire = b"".join(sealed.parts()[1:])
    assert not any(secret in wire for secret in (b"cached", b"states", b"scales"))
    assert ReceiveKey(KEY).open(sealed) == FRAME


def test_the_same_frame_twice_is_two_texts_and_a_copy_is_known_as_one() -> None:
    sends, receives = SendKey(KEY), ReceiveKey(KEY)
    first, second = sends.seal(FRAME), sends.seal(FRAME)
    assert len({*first.parts()[1:], *second.parts()[1:]}) == 6
    opened = [receives.open(sealed) for sealed in (second, first, second, first)]
    assert [frame.again for frame in opened] == [False, False, True, True]
    assert all(replace(frame, again=False) == FRAME for frame in opened)


def _changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def tampered(sealed: Frame, other: Frame) -> Iterator[Frame]:
    """All that a relay could make of a frame with two parts of payload, and another like it."""
    about, body, payload = sealed.envelope, sealed.packed_body, list(sealed.payload)
    yield FRAME
    for wrong in (b"", b"\x02", body[:-1], body + bytes(4 << 20)):
        yield replace(sealed, packed_body=wrong)
    yield replace(sealed, envelope=replace(about, kind=Kind.RENEW))
    yield replace(sealed, envelope=replace(about, session=b"t" * 16))
    yield replace(sealed, envelope=replace(about, seq=8))
    yield replace(sealed, packed_body=other.packed_body)
    for parts in (
        [],
        payload[:1],
        [*payload, payload[0]],
        payload[::-1],
        other.payload,
        [body, payload[1]],
        [payload[0][:-1], payload[1]],
        [payload[0] + b"\0", payload[1]],
        [b"", b""],
    ):
        yield replace(sealed, payload=parts)
    yield from (replace(sealed, packed_body=_changed(body, at)) for at in range(len(body)))
    for at in range(len(payload[0])):
        yield replace(sealed, payload=[_changed(payload[0], at), payload[1]])


def test_what_was_changed_in_any_way_does_not_open_and_leaves_no_trace() -> None:
    sends, receives = SendKey(KEY), ReceiveKey(KEY)
    sealed, other = sends.seal(FRAME), sends.seal(FRAME)
    for frame in tampered(sealed, other):
        with pytest.raises(SealBroken):
            receives.open(frame)
    with pytest.raises(SealBroken):
        ReceiveKey(OTHER).open(sealed)
    assert receives.open(sealed) == FRAME


def test_a_direction_does_not_open_what_it_sealed_itself() -> None:
    here, there = Seal(sends=KEY, receives=OTHER), Seal(sends=OTHER, receives=KEY)
    sealed = here.seal(FRAME)
    with pytest.raises(SealBroken):
        here.open(sealed)
    assert there.open(sealed) == FRAME


def test_errors_say_the_kind_and_nothing_of_what_came() -> None:
    with pytest.raises(SealBroken) as told:
        ReceiveKey(OTHER).open(SendKey(KEY).seal(FRAME))
    assert str(told.value) == "a EXTEND frame is not as it was sealed for this session"


def test_a_sealed_body_is_no_body_for_who_does_not_expect_one() -> None:
    sealed = SendKey(KEY).seal(FRAME)
    assert is_sealed(sealed.packed_body)
    assert not is_sealed(FRAME.packed_body)
    with pytest.raises(MalformedFrame):
        sealed.body(Extend)


def test_what_is_older_than_the_window_is_refused() -> None:
    sends, receives = SendKey(KEY), ReceiveKey(KEY)
    frame = Frame(Envelope(Kind.RENEW, b"s" * 16), b"")
    sealed = [sends.seal(frame) for _ in range(WINDOW + 1)]
    receives.open(sealed[-1])
    assert not receives.open(sealed[1]).again
    with pytest.raises(SealBroken):
        receives.open(sealed[0])


def test_the_window_tells_each_counter_once_in_any_order() -> None:
    window = CounterWindow()
    order = [3, 0, 2, 1, WINDOW, 5, WINDOW + 3]
    assert [window.note(counter) for counter in order] == [False] * len(order)
    kept = [counter for counter in order if not window.is_past(counter)]
    assert kept == [WINDOW, 5, WINDOW + 3]
    assert [window.note(counter) for counter in kept] == [True] * len(kept)
    assert window.is_past(3)
    assert not window.is_past(4)
    assert not window.note(10 * WINDOW)
    assert window.is_past(9 * WINDOW)
