"""What ZeroMQ asks about who connects, and how to answer: ZAP 1.0 (ZeroMQ RFC 27). No socket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from fedsea_mq.errors import MalformedFrame

ENDPOINT: Final = "inproc://zeromq.zap.01"
MAX_PARTS: Final = 12
CURVE: Final = b"CURVE"
_VERSION: Final = b"1.0"
# Asker, empty, version, request id, domain, address, routing id, mechanism; then the credentials.
_FIXED: Final = 8


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a peer may come in, and the id that its messages then bear; why not, if not.

    Who is refused is told so, and does not try again by itself, if that `is_final`; otherwise it
    is sent away without a word, and does.
    """

    user_id: str = ""
    refusal: str = ""
    is_final: bool = True


@dataclass(frozen=True, slots=True)
class Question:
    """One connection that is being made. `key` is the peer's public key, where it has shown one."""

    asker: bytes
    request_id: bytes
    key: bytes | None

    @classmethod
    def read(cls, parts: Sequence[bytes]) -> Self:
        """Read a request off the handler's socket. Raises `MalformedFrame`."""
        if not _FIXED <= len(parts) <= MAX_PARTS or parts[2] != _VERSION:
            raise MalformedFrame(f"a ZAP request of {len(parts)} parts")
        credentials = parts[_FIXED:]
        proven = parts[7] == CURVE and len(credentials) == 1
        return cls(parts[0], parts[3], credentials[0] if proven else None)

    def answer(self, verdict: Verdict) -> list[bytes]:
        """The reply's parts: 200 to let it in, 300 to have it try again, 400 to refuse it."""
        refused = b"400" if verdict.is_final else b"300"
        status = refused if verdict.refusal else b"200"
        text, user_id = verdict.refusal.encode(), verdict.user_id.encode()
        return [self.asker, b"", _VERSION, self.request_id, status, text, user_id, b""]
