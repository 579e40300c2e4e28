"""A client's and a trunk's ends of sealed sessions, with nothing between them but the test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fedsea_mq.errors import FedSeaError
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.protocol.messages import Accept, Extend, Nothing, Open
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.security.client_seals import ClientSeals
from fedsea_mq.security.keys import SecretKey
from fedsea_mq.security.node_seals import NodeSeals
from fedsea_mq.security.seal_keys import NodeKey, TrustedKeys
from fedsea_mq.serving.trunk_sessions import Action, Compute, Reply, TrunkSessions
from tests.unit.serving.trunk import ANNA, FINGERPRINT, TERMS, states

OPEN = Open(fingerprint=FINGERPRINT, max_positions=60, dtype=WireDtype.FP16)


def drawn() -> NodeKey:
    return NodeKey(SecretKey.generate())


@dataclass
class SealedTrunk:
    """`TrunkSessions` behind its seals, as a node has them. A computed output is its input."""

    key: NodeKey = field(default_factory=drawn)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.seals = NodeSeals(self.key)
        self.sessions = TrunkSessions(TERMS)
        self.computed: list[Compute] = []

    def receive(self, parts: Parts) -> list[Parts]:
        """What the node sends for what comes off the wire."""
        try:
            frame = Frame.read(parts)
        except FedSeaError:
            return []
        try:
            opened = self.seals.open(frame)
        except FedSeaError as error:
            return [Frame.error(error, frame.envelope).parts()]
        sent = self._act(self.sessions.receive(opened, self.now))
        if frame.envelope.kind is Kind.CLOSE:
            self.seals.forget(frame.envelope.session)
        return sent

    def _act(self, actions: Sequence[Action]) -> list[Parts]:
        sent: list[Parts] = []
        for action in actions:
            if isinstance(action, Compute):
                self.computed.append(action)
                outputs = states(action.body.returned, action.payload[0][0])
                sent += self._act(self.sessions.computed(action, outputs))
            elif isinstance(action, Reply):
                sealed = self.seals.seal(action.parts)
                sent += [] if sealed is None else [sealed]
        return sent

    def expire(self) -> list[Parts]:
        return self._act(self.sessions.expire(self.now))

    def cached(self, session: bytes = ANNA) -> int:
        return self.sessions._sessions[session].positions.cached


@dataclass
class SealedClient:
    """Builds requests; a number is never used twice."""

    trusted: TrustedKeys
    seq: int = 0

    def __post_init__(self) -> None:
        self.seals = ClientSeals(self.trusted)

    @classmethod
    def of(cls, *keys: NodeKey) -> SealedClient:
        return cls(TrustedKeys({Role.TRUNK: frozenset(key.public for key in keys)}))

    def request(
        self, kind: Kind, body: Any, session: bytes = ANNA, payload: Sequence[bytes] = ()
    ) -> Parts:
        self.seq += 1
        return self.seals.build(kind, body, session, self.seq, payload).parts()

    def open(self, trunk: SealedTrunk, session: bytes = ANNA, asked: Open = OPEN) -> Accept:
        (reply,) = trunk.receive(self.request(Kind.OPEN, asked, session))
        return self.answer(reply).body(Accept)

    def extend(
        self,
        cached: int,
        count: int,
        mark: int = 0,
        session: bytes = ANNA,
        *,
        rewinds: bool = False,
    ) -> Parts:
        body = Extend(cached=cached, count=count, returned=1, rewinds=rewinds)
        return self.request(Kind.EXTEND, body, session, states(count, mark))

    def renew(self, session: bytes = ANNA) -> Parts:
        return self.request(Kind.RENEW, Nothing(), session)

    def answer(self, parts: Parts) -> Frame:
        """A reply as the client takes it. Raises what it is refused with."""
        return self.seals.open(Frame.read(parts))
