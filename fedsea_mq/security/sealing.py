"""Sealed frames: only the other end of a session can read them, and nobody can change them.

| part | sealed |
|---|---|
| envelope | as it is; every other part is sealed together with it |
| body | a tag, the counter of the frame (8 bytes), ciphertext and its authenticator (16 bytes) |
| payload, each part | ciphertext and its authenticator (16 bytes) |

The cipher is ChaCha20-Poly1305 (RFC 8439). A nonce is the frame's counter and the number of the
part. Each direction of a session has a key of its own, and `SendKey` counts by itself: it has no
way to seal two texts under one nonce, whatever it is asked to seal. What is sent again is sent as
the bytes that it was sealed to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedsea_mq.errors import SealBroken
from fedsea_mq.protocol.envelope import Envelope
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import MAX_LISTING_BYTES

KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
# Where a body in clear says how it is packed: 0 and 1 are those of `protocol.compression`.
_SEALED: Final = b"\x02"
_COUNTER_BYTES: Final = 8
_HEADER_BYTES: Final = len(_SEALED) + _COUNTER_BYTES
# What a body grows by when it is sealed.
OVERHEAD_BYTES: Final = _HEADER_BYTES + TAG_BYTES
_PART_BYTES: Final = 4
# No body is as long; payloads are bounded by the socket, and by their session once they are open.
_MAX_BODY_BYTES: Final = 2 * MAX_LISTING_BYTES
# Counters that are remembered: far more than frames of one session are ever under way.
WINDOW: Final = 1024


def is_sealed(packed_body: bytes) -> bool:
    """Whether a body says that it is sealed."""
    return packed_body[: len(_SEALED)] == _SEALED


class SendKey:
    """Seals what one end sends. Draw a new key for each session: it counts from 0."""

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._counter = 0

    def seal(self, frame: Frame) -> Frame:
        """The frame with its body and payload sealed, under a counter that no other has."""
        counter = self._counter.to_bytes(_COUNTER_BYTES, "big")
        self._counter += 1
        about = _about(frame.envelope, 1 + len(frame.payload))
        encrypt = self._cipher.encrypt
        body = encrypt(_nonce(counter, 0), frame.packed_body, about)
        payload = [
            encrypt(_nonce(counter, number), part, about)
            for number, part in enumerate(frame.payload, 1)
        ]
        return Frame(frame.envelope, _SEALED + counter + body, payload)


class ReceiveKey:
    """Opens what the other end sent."""

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._window = CounterWindow()

    def open(self, frame: Frame) -> Frame:
        """The frame as it was before it was sealed; `again` says if it was here before.

        Raises:
            SealBroken: it is in clear, was changed, is of another session or direction, or is older
                than what is remembered. Nothing is changed by it.
        """
        sealed = frame.packed_body
        if not is_sealed(sealed) or not OVERHEAD_BYTES <= len(sealed) <= _MAX_BODY_BYTES:
            raise SealBroken(f"a {frame.envelope.kind.name} frame that is not sealed")
        counter = sealed[len(_SEALED) : _HEADER_BYTES]
        number = int.from_bytes(counter, "big")
        if self._window.is_past(number):
            raise SealBroken(f"a {frame.envelope.kind.name} frame older than the newest {WINDOW}")
        body, *payload = self._parts(frame, counter, (sealed[_HEADER_BYTES:], *frame.payload))
        return Frame(frame.envelope, body, payload, again=self._window.note(number))

    def _parts(self, frame: Frame, counter: bytes, parts: Sequence[bytes]) -> list[bytes]:
        about = _about(frame.envelope, len(parts))
        try:
            return [
                self._cipher.decrypt(_nonce(counter, number), part, about)
                for number, part in enumerate(parts)
            ]
        except InvalidTag:
            raise SealBroken(
                f"a {frame.envelope.kind.name} frame is not as it was sealed for this session"
            ) from None


class CounterWindow:
    """Which of the newest `WINDOW` counters were here."""

    def __init__(self) -> None:
        self._newest = -1
        # Bit n is for the counter n below the newest.
        self._seen = 0

    def is_past(self, counter: int) -> bool:
        """Whether it is too old to tell."""
        return counter <= self._newest - WINDOW

    def note(self, counter: int) -> bool:
        """Remember a counter that is not past; whether it was here before."""
        ahead = counter - self._newest
        if ahead > 0:
            self._seen = ((self._seen << min(ahead, WINDOW)) | 1) & ((1 << WINDOW) - 1)
            self._newest = counter
            return False
        bit = 1 << -ahead
        again = bool(self._seen & bit)
        self._seen |= bit
        return again


class Seal:
    """One end of a sealed session: a key for each direction."""

    def __init__(self, sends: bytes, receives: bytes) -> None:
        self._sends = SendKey(sends)
        self._receives = ReceiveKey(receives)

    def seal(self, frame: Frame) -> Frame:
        """See `SendKey.seal`."""
        return self._sends.seal(frame)

    def open(self, frame: Frame) -> Frame:
        """See `ReceiveKey.open`. Raises `SealBroken`."""
        return self._receives.open(frame)


def _nonce(counter: bytes, part: int) -> bytes:
    return counter + part.to_bytes(_PART_BYTES, "big")


def _about(envelope: Envelope, parts: int) -> bytes:
    """What each part is sealed together with: the envelope, and how many parts there are."""
    return envelope.encode() + bytes([parts])
