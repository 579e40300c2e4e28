"""What a node has room for, between its heartbeats too. Pure.

A heartbeat tells what is free. What the broker itself sees happen after it is added up until the
next one: sessions that it sends there, and sessions that end. Frames of a node come in order, so a
session that was not accepted when a heartbeat came is not in it; one that was, is. An end may have
crossed with a heartbeat, whose word then stands: room comes back one heartbeat late, never twice.
"""

from __future__ import annotations

from collections.abc import Collection

from fedsea_mq.protocol.messages import Load


class Room:
    """Free KV positions and session slots of one node, by its last `load` and what came after."""

    def __init__(self, load: Load) -> None:
        self.load = load
        # KV positions by session: sent there and not yet accepted, and accepted.
        self._promised: dict[bytes, int] = {}
        self._held: dict[bytes, int] = {}
        self.positions_free = load.kv_positions_free
        self.sessions_free = load.sessions_free

    def takes(self, positions: int) -> bool:
        """Whether a session of so many positions fits in now."""
        return self.sessions_free > 0 and positions <= self.positions_free

    def promise(self, session: bytes, positions: int) -> None:
        """A session is sent there."""
        self._promised[session] = positions
        self._take(positions)

    def accepted(self, session: bytes) -> None:
        """The node took a session in; nothing, if it is not one that was placed here."""
        positions = self._promised.pop(session, None)
        if positions is not None:
            self._held[session] = positions

    def ended(self, session: bytes) -> None:
        """A session was refused or is over. Of one from before this broker, nothing is known."""
        positions = self._promised.pop(session, None)
        if positions is None:
            positions = self._held.pop(session, None)
        if positions is not None:
            self.positions_free += positions
            self.sessions_free += 1

    def told(self, load: Load) -> None:
        """The node told its load."""
        self.load = load
        self.positions_free, self.sessions_free = load.kv_positions_free, load.sessions_free
        for positions in self._promised.values():
            self._take(positions)

    def registered(self, load: Load, sessions: Collection[bytes]) -> None:
        """The node registered again, with these sessions."""
        for session in sessions:
            self.accepted(session)
        listed = set(sessions)
        self._held = {session: n for session, n in self._held.items() if session in listed}
        self.told(load)

    def _take(self, positions: int) -> None:
        self.positions_free -= positions
        self.sessions_free -= 1
