"""The clients' sessions with the aggregator, and requests that are held. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fedsea_mq.errors import LimitExceeded, MalformedFrame
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Envelope
from fedsea_mq.protocol.training_messages import MAX_MEMBERS, Enlist
from fedsea_mq.training.enlisted import EnlistedSessions, check_of_run

# How long a request is held. With the time between two ticks it is less than the 2 s of a poll.
POLL_S: Final = 1.5


@dataclass(frozen=True, slots=True)
class RunTerms:
    """Whose run it is: what a client must have in common with the aggregator."""

    node: str
    run: str
    fingerprint: str
    agreed: str
    lease_s: float


@dataclass(frozen=True, slots=True)
class Poll:
    """A request that is held until there is something to say; `attempt` is that of a `Secure`."""

    envelope: Envelope
    until: float
    attempt: bytes | None = None


@dataclass(slots=True)
class MemberSession:
    """One client's session."""

    id: bytes
    enlisted: Enlist
    member: str
    lease_until: float
    samples: int = 0
    poll: Poll | None = None

    def hold(self, poll: Poll) -> None:
        """Hold a request in place of the one before; sent again, it is held no longer for that."""
        if self.poll is None or self.poll.envelope != poll.envelope:
            self.poll = poll


class Members(EnlistedSessions[MemberSession]):
    """All sessions, by id and by member."""

    def __init__(self, terms: RunTerms) -> None:
        super().__init__(terms.lease_s)
        self.terms = terms

    def enlist(self, session_id: bytes, asked: Enlist, now: float) -> MemberSession | None:
        """Give a client a session, which may be told to it again; what it replaces, if anything.

        Raises:
            RunUnknown, FingerprintMismatch, RunMismatch: it is not of this run.
            LimitExceeded: there are as many members as there may be.
            MalformedFrame: no session id, no member, or a session that is another's.
        """
        if asked.member is None:
            raise MalformedFrame("an aggregator's sessions are of members")
        check_of_run(asked, Role.AGGREGATOR, self.terms)
        if self.held(session_id, asked):
            return None
        replaced = self.of(asked.member)
        if replaced is None and len(self) >= MAX_MEMBERS:
            raise LimitExceeded(f"{MAX_MEMBERS} members have sessions, which is the most")
        if replaced is not None:
            self.close(replaced.id)
        self.take(MemberSession(session_id, asked, asked.member, now + self.lease_s))
        return replaced
