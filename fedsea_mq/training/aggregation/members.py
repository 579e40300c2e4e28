"""The clients' sessions with the aggregator: who may have one, leases, and requests that are held.

A member has one session. Where it comes again, as after a restart, the new session takes the place
of the old one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from fedsea_mq.errors import (
    FingerprintMismatch,
    LimitExceeded,
    MalformedFrame,
    RunMismatch,
    RunUnknown,
    SessionUnknown,
)
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Envelope
from fedsea_mq.protocol.training_messages import MAX_MEMBERS, Enlist

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


class Members:
    """All sessions, by id and by member."""

    def __init__(self, terms: RunTerms) -> None:
        self.terms = terms
        self._sessions: dict[bytes, MemberSession] = {}
        self._by_member: dict[str, MemberSession] = {}

    def __iter__(self) -> Iterator[MemberSession]:
        return iter(list(self._sessions.values()))

    def __contains__(self, session_id: bytes) -> bool:
        return session_id in self._sessions

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def ids(self) -> list[bytes]:
        """The sessions held, for registration with a restarted broker."""
        return list(self._sessions)

    def of(self, member: str) -> MemberSession | None:
        """The session of a member, if it has one."""
        return self._by_member.get(member)

    def enlist(self, session_id: bytes, asked: Enlist, now: float) -> MemberSession | None:
        """Give a client a session, which may be told to it again; what it replaces, if anything.

        Raises:
            RunUnknown, FingerprintMismatch, RunMismatch: it is not of this run.
            LimitExceeded: there are as many members as there may be.
            MalformedFrame: no session id, no member, or a session that is another's.
        """
        member = self._checked(session_id, asked)
        held = self._sessions.get(session_id)
        if held is not None:
            if replace(held.enlisted, client=asked.client) != asked:
                raise MalformedFrame("the session is open already, on other terms")
            return None
        replaced = self._by_member.get(member)
        if replaced is None and len(self._sessions) >= MAX_MEMBERS:
            raise LimitExceeded(f"{MAX_MEMBERS} members have sessions, which is the most")
        if replaced is not None:
            self.close(replaced.id)
        session = MemberSession(session_id, asked, member, now + self.terms.lease_s)
        self._sessions[session_id] = self._by_member[member] = session
        return replaced

    def _checked(self, session_id: bytes, asked: Enlist) -> str:
        terms = self.terms
        if not session_id or asked.member is None or asked.role is not Role.AGGREGATOR:
            raise MalformedFrame("an aggregator's sessions have an id, its role and a member")
        if asked.run != terms.run:
            raise RunUnknown(f"node {terms.node} is the aggregator of another run")
        if asked.fingerprint != terms.fingerprint:
            raise FingerprintMismatch(
                f"the client holds {asked.fingerprint[:12]}, "
                f"run {terms.run} is of {terms.fingerprint[:12]}"
            )
        if asked.agreed != terms.agreed:
            raise RunMismatch(
                f"the client's settings are {asked.agreed[:12]}, "
                f"those of run {terms.run} are {terms.agreed[:12]}"
            )
        return asked.member

    def find(self, envelope: Envelope, now: float) -> MemberSession:
        """The session that a frame is of; its lease is renewed. Raises `SessionUnknown`."""
        session = self._sessions.get(envelope.session)
        if session is None:
            raise SessionUnknown("no such session with this aggregator")
        session.lease_until = now + self.terms.lease_s
        return session

    def close(self, session_id: bytes) -> MemberSession | None:
        """Let go of a session; it, if it was held."""
        session = self._sessions.pop(session_id, None)
        if session is not None:
            del self._by_member[session.member]
        return session

    def expire(self, now: float) -> list[MemberSession]:
        """Let go of the sessions whose lease ran out."""
        expired = [session for session in self if session.lease_until <= now]
        for session in expired:
            self.close(session.id)
        return expired
