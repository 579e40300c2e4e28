"""The trunk nodes that are alive, and which of them a new session goes to. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsea_mq.errors import Busy, FingerprintMismatch, LimitExceeded, NodeUnknown
from fedsea_mq.protocol.messages import (
    MAX_NODES,
    MAX_SESSIONS_A_NODE,
    Load,
    NodeStatus,
    Open,
    Register,
)
from fedsea_mq.protocol.waiting_list import Room, WaitingList


@dataclass(slots=True)
class Node:
    """One registered trunk node. `peer` is its address on the broker's socket."""

    peer: bytes
    offer: Register
    load: Load
    heard_at: float
    promised_positions: int = 0
    """KV of sessions placed since the node last told its load."""

    @property
    def kv_free(self) -> int:
        """KV positions that a new session can still have."""
        return self.load.kv_positions_free - self.promised_positions

    def has_room(self, positions: int) -> bool:
        """Whether it can take a session of so many positions now."""
        return self.kv_free >= positions and self.load.sessions < MAX_SESSIONS_A_NODE


class Registry:
    """Every live node, by its address."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._nodes: dict[bytes, Node] = {}
        # By fingerprint: who waits for one model is in nobody's way for another.
        self._waiting: dict[str, WaitingList] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def register(self, peer: bytes, offer: Register, now: float) -> None:
        """Add a node, or renew one that registers again.

        Raises:
            LimitExceeded: the broker holds as many nodes as it can.
        """
        if peer not in self._nodes and len(self._nodes) >= MAX_NODES:
            raise LimitExceeded(f"{MAX_NODES} nodes are registered already")
        self._nodes[peer] = Node(peer, offer, offer.load, now)

    def heartbeat(self, peer: bytes, load: Load, now: float) -> None:
        """Note that a node lives, and its load. Raises `NodeUnknown`."""
        node = self._nodes.get(peer)
        if node is None:
            raise NodeUnknown("this broker does not know the node: register again")
        node.load, node.heard_at, node.promised_positions = load, now, 0

    def drop(self, peer: bytes) -> bool:
        """Forget a node; whether it was known."""
        known = self._nodes.pop(peer, None)
        served = {node.offer.fingerprint for node in self._nodes.values()}
        self._waiting = {name: self._waiting[name] for name in self._waiting.keys() & served}
        return known is not None

    def forgive(self, seconds: float) -> None:
        """Take every node as heard of that much later: it may have spoken, and nobody listened."""
        for node in self._nodes.values():
            node.heard_at += seconds

    def silent(self, now: float) -> list[bytes]:
        """The nodes not heard of for longer than the timeout."""
        return [n.peer for n in self._nodes.values() if now - n.heard_at > self._timeout_s]

    def place(self, session: bytes, asked: Open, now: float) -> Node:
        """The node of the right fingerprint with most free KV, with room set aside on it.

        Raises:
            FingerprintMismatch: no node serves the client's model and cut.
            Busy: all that serve it are full.
        """
        fits = [n for n in self._nodes.values() if n.offer.fingerprint == asked.fingerprint]
        if not fits:
            served = sorted({n.offer.fingerprint[:12] for n in self._nodes.values()})
            raise FingerprintMismatch(
                f"no node serves model and cut {asked.fingerprint[:12]}; "
                f"served: {', '.join(served[:8]) or 'none'}"
            )
        # A session that no node could ever hold goes to one all the same, which says so.
        if asked.max_positions > max(node.load.kv_positions_total for node in fits):
            return max(fits, key=lambda node: node.kv_free)
        can_now = [node for node in fits if node.has_room(asked.max_positions)]
        waiting = self._waiting.setdefault(asked.fingerprint, WaitingList())
        pause_s = waiting.admit(session, asked.max_positions, _room(can_now), now)
        if pause_s is not None:
            raise Busy("all nodes are full", pause_s)
        best = max(can_now, key=lambda node: node.kv_free)
        best.promised_positions += asked.max_positions
        return best

    def statuses(self, now: float) -> list[NodeStatus]:
        """One line a node, by name."""
        return sorted(
            (
                NodeStatus(
                    name=node.offer.name,
                    fingerprint=node.offer.fingerprint,
                    head_blocks=node.offer.head_blocks,
                    tail_blocks=node.offer.tail_blocks,
                    silent_ms=max(0, round((now - node.heard_at) * 1000)),
                    load=node.load,
                )
                for node in self._nodes.values()
            ),
            key=lambda status: status.name,
        )


def _room(nodes: Sequence[Node]) -> Room:
    return Room(
        sum(MAX_SESSIONS_A_NODE - node.load.sessions for node in nodes),
        sum(node.kv_free for node in nodes),
    )
