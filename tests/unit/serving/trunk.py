"""A trunk's sessions, driven by frames; what it answers, read back as a client would."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Extend, Nothing, Open
from fedsea_mq.protocol.payload import PayloadSpec, WireDtype
from fedsea_mq.serving.trunk_sessions import Action, Compute, Reply, TrunkSessions, TrunkTerms

FINGERPRINT = "ab" * 32
HIDDEN = 4
SPEC = PayloadSpec(WireDtype.FP16, HIDDEN)
ANNA, BERT, CARL = b"anna".ljust(16), b"bert".ljust(16), b"carl".ljust(16)
TERMS = TrunkTerms(
    node="trunk-1",
    fingerprint=FINGERPRINT,
    hidden=HIDDEN,
    kv_positions=100,
    max_session_positions=60,
    max_sessions=3,
    max_frame_positions=8,
    lease_s=10.0,
    retry_after_s=0.25,
)


def states(count: int, mark: int = 0) -> list[bytes]:
    """The payload of `count` positions."""
    return [bytes([mark]) * size for size in SPEC.part_sizes(count)]


@dataclass
class Trunk:
    """`TrunkSessions` and a clock that stands where the test puts it."""

    sessions: TrunkSessions = field(default_factory=lambda: TrunkSessions(TERMS))
    now: float = 0.0
    seq: int = 0

    def ask(
        self, kind: Kind, body: Any, session: bytes, payload: list[bytes] | None = None
    ) -> list[Action]:
        self.seq += 1
        frame = Frame.build(kind, body, session=session, seq=self.seq, payload=payload or [])
        return self.sessions.receive(frame, self.now)

    def open(self, session: bytes, positions: int = 20, **other: Any) -> Frame:
        asked = {"fingerprint": FINGERPRINT, "dtype": WireDtype.FP16, **other}
        return self.one(self.ask(Kind.OPEN, Open(max_positions=positions, **asked), session))

    def extend(
        self,
        session: bytes,
        cached: int,
        count: int,
        mark: int = 0,
        returned: int = 1,
        rewinds: bool = False,
    ) -> list[Action]:
        body = Extend(cached=cached, count=count, returned=returned, rewinds=rewinds)
        return self.ask(Kind.EXTEND, body, session, states(count, mark))

    def begin(self, session: bytes, cached: int, count: int, mark: int = 0) -> Compute:
        (work,) = self.extend(session, cached, count, mark)
        assert isinstance(work, Compute)
        return work

    def step(self, session: bytes, cached: int, count: int, mark: int = 0) -> Frame:
        """Extend, compute and reply."""
        work = self.begin(session, cached, count, mark)
        return self.one(self.sessions.computed(work, states(1, mark)))

    def renew(self, session: bytes) -> Frame:
        return self.one(self.ask(Kind.RENEW, Nothing(), session))

    def close(self, session: bytes) -> list[Action]:
        return self.ask(Kind.CLOSE, Nothing(), session)

    def one(self, actions: list[Action]) -> Frame:
        """The single reply among `actions`, under the number that was asked last."""
        (reply,) = actions
        assert isinstance(reply, Reply)
        return Frame.read(reply.parts)
