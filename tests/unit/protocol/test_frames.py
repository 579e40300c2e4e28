"""A frame is two to four parts; refusals travel as frames and come back as the same errors."""

from __future__ import annotations

import pytest

from fedsea_mq.errors import (
    Busy,
    ConfigError,
    FedSeaError,
    FingerprintMismatch,
    LimitExceeded,
    MalformedFrame,
    NodeUnknown,
    PeerUnreachable,
    PositionConflict,
    PositionGap,
    RemoteError,
    SessionLost,
    SessionUnknown,
    StepFailed,
    UnsupportedVersion,
    error_from_wire,
)
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import MAX_PARTS, Frame, wire_bytes
from fedsea_mq.protocol.messages import MAX_MESSAGE_CHARS, Extend, Nothing

SESSION = b"s" * 16
ASKED = Envelope(Kind.EXTEND, SESSION, 7)
BODY = Extend(cached=3, count=1, returned=1)


def test_a_frame_comes_back_with_its_payload_untouched() -> None:
    frame = Frame.build(Kind.EXTEND, BODY, session=SESSION, seq=9, payload=[b"states", b"scales"])
    read = Frame.read(frame.parts())
    assert read.envelope == Envelope(Kind.EXTEND, SESSION, 9)
    assert read.body(Extend) == BODY
    assert read.payload == [b"states", b"scales"]


@pytest.mark.parametrize("count", [0, 1, MAX_PARTS + 1, 100])
def test_given_too_few_or_too_many_parts_then_the_frame_is_malformed(count: int) -> None:
    with pytest.raises(MalformedFrame, match=f"{count} parts"):
        Frame.read([ASKED.encode()] * count)


REFUSALS = [
    MalformedFrame,
    UnsupportedVersion,
    LimitExceeded,
    FingerprintMismatch,
    SessionUnknown,
    SessionLost,
    PositionGap,
    PositionConflict,
    NodeUnknown,
    StepFailed,
    PeerUnreachable,
]


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_remote_error_is_raised_as_the_same_class_on_the_other_side(
    kind: type[RemoteError],
) -> None:
    reply = Frame.read(Frame.error(kind("said so"), ASKED).parts())
    told = reply.refusal()
    assert type(told) is kind
    assert str(told) == "said so"
    assert reply.envelope == Envelope(Kind.ERROR, SESSION, 7)


def test_busy_carries_when_to_come_back() -> None:
    reply = Frame.read(Frame.error(Busy("full", retry_after_s=1.5), ASKED).parts())
    told = reply.refusal()
    assert reply.envelope.kind is Kind.BUSY
    assert isinstance(told, Busy)
    assert told.retry_after_s == 1.5


def test_our_own_faults_are_not_the_other_sides_to_read() -> None:
    told = Frame.error(ConfigError("/home/me/secret.yaml: unknown key"), ASKED).refusal()
    assert type(told) is RemoteError
    assert str(told) == "internal error"


def test_a_message_too_long_to_be_read_is_cut_when_it_is_written() -> None:
    told = Frame.error(StepFailed("\N{GRINNING FACE}" * 9999), ASKED).refusal()
    assert isinstance(told, StepFailed)
    assert len(str(told)) == MAX_MESSAGE_CHARS


def test_a_closing_frame_tells_why_the_session_is_over() -> None:
    frame = Frame.read(Frame.closing(SessionLost("node gone"), SESSION).parts())
    assert frame.envelope == Envelope(Kind.CLOSE, SESSION, 0)
    assert isinstance(frame.refusal(), SessionLost)


def test_a_frame_that_answers_is_no_refusal() -> None:
    assert Frame.build(Kind.RENEWED, Nothing(), session=SESSION).refusal() is None


def test_an_unknown_code_is_still_a_remote_error() -> None:
    error: FedSeaError = error_from_wire("of a later version", "something")
    assert type(error) is RemoteError


def test_wire_bytes_count_zmtp_framing() -> None:
    assert wire_bytes([b"x" * 255, b"x" * 256]) == (2 + 255) + (9 + 256)
