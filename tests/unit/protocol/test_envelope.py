"""Given an envelope, its bytes say the same; given other bytes, the refusal is typed."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from fedsea_mq.errors import MalformedFrame, UnsupportedVersion
from fedsea_mq.protocol.envelope import MAX_ENVELOPE_BYTES, PROTOCOL_VERSION, Envelope, Kind

SESSION = bytes(range(16))


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("session", [b"", SESSION])
@pytest.mark.parametrize("seq", [0, 1, 2**63 - 1])
def test_an_envelope_comes_back_as_it_was_sent(kind: Kind, session: bytes, seq: int) -> None:
    sent = Envelope(kind, session, seq)
    assert Envelope.decode(sent.encode()) == sent
    assert len(sent.encode()) <= MAX_ENVELOPE_BYTES


@pytest.mark.parametrize(
    "fields",
    [
        [PROTOCOL_VERSION],
        [PROTOCOL_VERSION, 1, SESSION],
        [PROTOCOL_VERSION, 1, SESSION, 0, 0],
        [PROTOCOL_VERSION, 0, SESSION, 0],
        [PROTOCOL_VERSION, 19, SESSION, 0],
        [PROTOCOL_VERSION, True, SESSION, 0],
        [PROTOCOL_VERSION, 1.0, SESSION, 0],
        [PROTOCOL_VERSION, "OPEN", SESSION, 0],
        [PROTOCOL_VERSION, [1], SESSION, 0],
        [PROTOCOL_VERSION, 1, SESSION[:15], 0],
        [PROTOCOL_VERSION, 1, SESSION + b"x", 0],
        [PROTOCOL_VERSION, 1, "x" * 16, 0],
        [PROTOCOL_VERSION, 1, None, 0],
        [PROTOCOL_VERSION, 1, SESSION, -1],
        [PROTOCOL_VERSION, 1, SESSION, 2**63],
        [PROTOCOL_VERSION, 1, SESSION, True],
        [PROTOCOL_VERSION, 1, SESSION, 1.5],
        [PROTOCOL_VERSION, 1, SESSION, None],
        [True, 1, SESSION, 0],
        ["1", 1, SESSION, 0],
        [],
        {},
        1,
        None,
    ],
)
def test_given_wrong_fields_then_the_frame_is_malformed(fields: Any) -> None:
    with pytest.raises(MalformedFrame):
        Envelope.decode(msgpack.packb(fields))


@pytest.mark.parametrize("version", [0, 1, -1, 2**63])
def test_given_another_version_then_the_refusal_says_which_we_speak(version: int) -> None:
    with pytest.raises(UnsupportedVersion, match=f"speaks {PROTOCOL_VERSION}"):
        Envelope.decode(msgpack.packb([version, "whatever follows"]))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x91" * 60, b"\x94\x01"])
def test_given_bytes_that_are_not_msgpack_then_the_frame_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedFrame):
        Envelope.decode(data)


def test_given_trailing_bytes_then_the_frame_is_malformed() -> None:
    with pytest.raises(MalformedFrame):
        Envelope.decode(Envelope(Kind.OPEN, SESSION).encode() + b"\x00")


def test_given_more_bytes_than_any_envelope_has_then_they_are_not_even_read() -> None:
    with pytest.raises(MalformedFrame, match=f"at most {MAX_ENVELOPE_BYTES}"):
        Envelope.decode(b"\xc1" * (MAX_ENVELOPE_BYTES + 1))
