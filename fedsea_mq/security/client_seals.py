"""A client's sealed sessions: every request goes out sealed, every answer is opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, Self

from fedsea_mq.errors import (
    Busy,
    MemberReplaced,
    NotTrusted,
    RemoteError,
    SealBroken,
    SessionLost,
    SessionNotYours,
    SessionUnknown,
)
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Body, Open
from fedsea_mq.protocol.training_messages import Enlist
from fedsea_mq.security.handshake import Entropy, Offer
from fedsea_mq.security.seal_keys import TrustedKeys
from fedsea_mq.security.sealing import Seal, is_sealed
from fedsea_mq.security.settings import SecuritySection

# What the broker says for itself, and nodes of sessions that they do not know. The broker is no
# party to the seal, so these may be forged on the way: of a session that is open nothing else is
# believed than that it is over, or that there is no room now.
_IN_CLEAR: Final = frozenset({Kind.BUSY, Kind.ERROR, Kind.CLOSE})
_BELIEVED: Final = (
    Busy,
    MemberReplaced,
    NotTrusted,
    SessionLost,
    SessionNotYours,
    SessionUnknown,
)


class ClientSeals:
    """The seals of one client's sessions, by session. `entropy` exists for tests."""

    def __init__(self, trusted: TrustedKeys, entropy: Entropy = os.urandom) -> None:
        self._trusted = trusted
        self._entropy = entropy
        self._sessions: dict[bytes, Offer | Seal] = {}

    @classmethod
    def of(cls, security: SecuritySection) -> Self | None:
        """As the settings say; None where sessions are not sealed. Raises as the keys are."""
        return cls(TrustedKeys.load(security)) if security.seal == "on" else None

    def __len__(self) -> int:
        return len(self._sessions)

    def build(
        self, kind: Kind, body: Body, session: bytes, seq: int, payload: Sequence[bytes]
    ) -> Frame:
        """A request to send; build it once, and send the same bytes if it is sent again.

        Raises:
            SessionUnknown: it is of a session that was not opened, or is over.
        """
        if not session:
            return Frame.build(kind, body, seq=seq, payload=payload)
        if isinstance(body, Open | Enlist):
            offer = self._sessions[session] = Offer(session, body, self._entropy)
            return Frame.build(kind, offer.asked, session=session, seq=seq)
        seal = self._sessions.get(session)
        if not isinstance(seal, Seal):
            raise SessionUnknown("the session is not open")
        return seal.seal(Frame.build(kind, body, session=session, seq=seq, payload=payload))

    def open(self, frame: Frame) -> Frame:
        """An answer, as the node sealed it; or one in clear that may be.

        Raises:
            SealBroken: it is not an answer of the session's node, or was changed or here before.
            KeyUntrusted: it is of a node whose key is not trusted.
        """
        kind, session = frame.envelope.kind, frame.envelope.session
        if not session:
            return frame
        held = self._sessions.get(session)
        if kind in _IN_CLEAR and not is_sealed(frame.packed_body):
            _check_in_clear(frame, is_open=isinstance(held, Seal))
            return frame
        if isinstance(held, Offer) and kind is Kind.ACCEPT:
            self._sessions[session], opened = held.settle(frame, self._trusted)
            return opened
        if not isinstance(held, Seal):
            raise SealBroken(f"a {kind.name} frame of a session that is not open")
        opened = held.open(frame)
        if opened.again:
            raise SealBroken(f"a {kind.name} frame that was here before")
        return opened

    def forget(self, session: bytes) -> None:
        """A session is over, if there was one."""
        self._sessions.pop(session, None)


def _check_in_clear(frame: Frame, *, is_open: bool) -> None:
    """Refuse what nobody says in clear to a client whose frames arrive as they were sealed."""
    kind = frame.envelope.kind
    try:
        refusal = frame.refusal()
    except RemoteError:
        raise SealBroken(f"a {kind.name} frame that cannot be read") from None
    if not isinstance(refusal, _BELIEVED) and (is_open or kind is Kind.CLOSE):
        raise SealBroken(f"a {kind.name} frame in clear: {type(refusal).__name__}")
