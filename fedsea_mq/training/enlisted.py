"""Who has enlisted with a party of a run, and until when: what trunk and aggregator have in common.

There is one session a name: who enlists anew, as after a restart, takes the place of what it was
before. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from fedsea_mq.errors import (
    FingerprintMismatch,
    MalformedFrame,
    MemberReplaced,
    RemoteError,
    RunMismatch,
    RunUnknown,
    SessionLost,
    SessionUnknown,
)
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.training_messages import Enlist


class Terms(Protocol):
    """What all parties of a run must have in common, and how long a lease is."""

    @property
    def node(self) -> str:
        """The name of who is asked."""

    @property
    def run(self) -> str:
        """The run's name."""

    @property
    def fingerprint(self) -> str:
        """Of the model and its cut."""

    @property
    def agreed(self) -> str:
        """The digest of the settings that must be equal."""

    @property
    def lease_s(self) -> float:
        """How long a session lives without a word."""


def check_of_run(asked: Enlist, role: Role, terms: Terms) -> None:
    """Refuse who is not of the run.

    Raises:
        RunUnknown, FingerprintMismatch, RunMismatch: another role or run, another model or cut,
            other settings.
    """
    if (asked.role, asked.run) != (role, terms.run):
        raise RunUnknown(f"node {terms.node} is the {role} of run {terms.run}")
    if asked.fingerprint != terms.fingerprint:
        raise FingerprintMismatch(
            f"the party holds {asked.fingerprint[:12]}, "
            f"run {terms.run} at node {terms.node} is of {terms.fingerprint[:12]}"
        )
    if asked.agreed != terms.agreed:
        raise RunMismatch(
            f"the party's settings of run {terms.run} are {asked.agreed[:12]}, "
            f"those of node {terms.node} {terms.agreed[:12]}: strategy, seed, lora, federation"
        )


def replaced_by_another(session: Enlisted) -> RemoteError:
    """What is told to a session whose place another one took, should anybody still hear it.

    Members enlist anew once they have let go of their session, so a member that hears this is not
    the only one of its name, and must not take the place back: two of them would go on for ever.
    """
    member = session.enlisted.member
    if member is None:
        return SessionLost("the party has enlisted anew")
    return MemberReplaced(
        f"another process has enlisted as member {member} of run {session.enlisted.run}: each "
        "process needs a training.member of its own"
    )


class Enlisted(Protocol):
    """One party's session, as it asked for it."""

    id: bytes
    enlisted: Enlist
    lease_until: float


S = TypeVar("S", bound=Enlisted)


class EnlistedSessions(Generic[S]):
    """The sessions, by id and by the name in the run; the aggregator has none, and is None."""

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self._sessions: dict[bytes, S] = {}
        self._by_member: dict[str | None, S] = {}

    def __iter__(self) -> Iterator[S]:
        return iter(list(self._sessions.values()))

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session: bytes) -> bool:
        return session in self._sessions

    @property
    def ids(self) -> list[bytes]:
        """The sessions held, for registration with a restarted broker."""
        return list(self._sessions)

    @property
    def owners(self) -> list[bytes]:
        """Whose each of them is, in the same order."""
        return [session.enlisted.client for session in self._sessions.values()]

    def of(self, member: str | None) -> S | None:
        """The session of a member, if it has one."""
        return self._by_member.get(member)

    def held(self, session: bytes, asked: Enlist) -> bool:
        """Whether the session is there already, asked for in the same words.

        Raises:
            MalformedFrame: no session id, or it is there on other terms.
        """
        if not session:
            raise MalformedFrame("an enlist frame without a session id")
        held = self._sessions.get(session)
        # Who the broker says is there may differ, after a reconnection.
        if held is not None and replace(held.enlisted, client=asked.client) != asked:
            raise MalformedFrame("the session is enlisted already, on other terms")
        return held is not None

    def take(self, session: S) -> None:
        """Hold a session, whose name has none."""
        self._sessions[session.id] = self._by_member[session.enlisted.member] = session

    def find(self, frame: Frame, now: float) -> S:
        """The session of a frame, whose lease it renews if it is new. Raises `SessionUnknown`."""
        session = self._sessions.get(frame.envelope.session)
        if session is None:
            raise SessionUnknown("no such training session here")
        if not frame.again:
            session.lease_until = now + self.lease_s
        return session

    def close(self, session: bytes) -> S | None:
        """End a session; what it was, if it was there."""
        closed = self._sessions.pop(session, None)
        if closed is not None:
            del self._by_member[closed.enlisted.member]
        return closed

    def expire(self, now: float) -> list[S]:
        """End every session whose lease ran out, and return them."""
        late = [one for one in self if one.lease_until <= now]
        for one in late:
            self.close(one.id)
        return late
