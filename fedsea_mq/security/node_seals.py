"""A node's sealed sessions: the rules inside see frames in clear, the sockets see sealed ones."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final, Self

from fedsea_mq.errors import SealRequired
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.security.handshake import Answer, Entropy, asked_in
from fedsea_mq.security.seal_keys import NodeKey
from fedsea_mq.security.settings import SecuritySection

_OPENS: Final = frozenset({Kind.OPEN, Kind.ENLIST})
_REFUSES: Final = frozenset({Kind.BUSY, Kind.ERROR})


@dataclass(slots=True)
class _Session:
    answer: Answer
    accepted: bool = False


class NodeSeals:
    """The seals of the sessions that a node holds, by session. `entropy` exists for tests.

    It learns from the frames that pass through it which sessions there are: accepted, refused,
    closed. Only a close frame of a client is for whoever receives it to `forget`.
    """

    def __init__(self, key: NodeKey, entropy: Entropy = os.urandom) -> None:
        self._key = key
        self._entropy = entropy
        self._sessions: dict[bytes, _Session] = {}

    @classmethod
    def of(cls, security: SecuritySection) -> Self | None:
        """As the settings say; None where sessions are not sealed. Raises as the keys are."""
        return cls(NodeKey.load(security)) if security.seal == "on" else None

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, frame: Frame) -> Frame:
        """A client's frame as it sealed it; `again` is one that is a copy of one before.

        Raises:
            SealRequired: a session is asked for that would not be sealed.
            SealBroken: the frame is not as this session's client sealed it. Its node changes
                nothing for it, so the client can send it again.
        """
        kind, session = frame.envelope.kind, frame.envelope.session
        if not session or kind is Kind.CLOSE:
            return frame
        if kind in _OPENS:
            self._agree(frame)
            return frame
        held = self._sessions.get(session)
        # Of a session that is not known here, nobody else knows anything either.
        return frame if held is None else held.answer.seal.open(frame)

    def _agree(self, frame: Frame) -> None:
        asked, session = asked_in(frame), frame.envelope.session
        if asked.seal is None:
            raise SealRequired("this node takes sealed sessions only (security.seal)")
        if session not in self._sessions:
            answer = Answer(session, asked, self._key, self._entropy)
            self._sessions[session] = _Session(answer)

    def seal(self, parts: Parts) -> Parts | None:
        """What to send for a frame of the node; nothing for one of a session that is over."""
        envelope = Envelope.decode(parts[0])
        kind, session = envelope.kind, envelope.session
        if not session:
            return parts
        if kind is Kind.CLOSE:
            self.forget(session)
            return parts
        held, frame = self._sessions.get(session), Frame(envelope, parts[1], parts[2:])
        if held is None:
            return parts if kind in _REFUSES else None
        if kind is Kind.ACCEPT:
            held.accepted = True
            return held.answer.accept(frame).parts()
        if not held.accepted:
            self.forget(session)
            return parts if kind in _REFUSES else None
        return held.answer.seal.seal(frame).parts()

    def forget(self, session: bytes) -> None:
        """A session is over, if there was one."""
        self._sessions.pop(session, None)
