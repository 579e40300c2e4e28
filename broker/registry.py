"""The nodes that are alive, and which of them a new session goes to. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from broker.chains import comes_by, entries
from broker.room import Room
from fedsea_mq.errors import (
    AdapterUnknown,
    Busy,
    FedSeaError,
    FingerprintMismatch,
    LimitExceeded,
    NodeUnknown,
)
from fedsea_mq.protocol.adapter_ref import AdapterRef, check_held
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.messages import (
    MAX_NODES,
    Load,
    NodeStatus,
    Open,
    Register,
)
from fedsea_mq.protocol.stage import Stage
from fedsea_mq.protocol.training_messages import Enlist


@dataclass(slots=True)
class Node:
    """One registered node: a trunk, or the aggregator of a training run.

    `peer` is its address on the broker's socket.
    """

    peer: bytes
    offer: Register
    room: Room
    heard_at: float
    # The id of its key; empty where there are no keys.
    owner: bytes = b""

    def holds(self, adapter: AdapterRef | None) -> bool:
        """Whether its blocks can be run with an adapter, or need none."""
        return adapter is None or adapter in self.offer.adapters

    def takes(self, asked: Open) -> bool:
        """Whether there is room for a session of its model, and what that is to be run with."""
        return self.holds(asked.adapter) and self.room.takes(asked.max_positions)


class Registry:
    """Every live node, by its address."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._nodes: dict[bytes, Node] = {}
        # The models of nodes that were here, the latest last: their nodes may come back.
        self._served: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, peer: object) -> bool:
        return peer in self._nodes

    def name_of(self, peer: bytes) -> str | None:
        """What the node at an address calls itself; None if there is none."""
        node = self._nodes.get(peer)
        return None if node is None else node.offer.name

    @property
    def trunks(self) -> list[Node]:
        """Those that serve."""
        return [node for node in self._nodes.values() if node.offer.role is Role.TRUNK]

    def count(self, role: Role) -> int:
        """How many do this."""
        return sum(node.offer.role is role for node in self._nodes.values())

    def owner(self, peer: bytes) -> bytes | None:
        """The id of the key that a node registered with, if it is there."""
        node = self._nodes.get(peer)
        return None if node is None else node.owner

    def of_owners(self, keys: Collection[bytes]) -> list[bytes]:
        """The nodes that registered with keys of these ids."""
        return [node.peer for node in self._nodes.values() if node.owner in keys]

    def register(self, peer: bytes, offer: Register, now: float, owner: bytes = b"") -> None:
        """Add a node, or renew one that registers again.

        Raises:
            LimitExceeded: the broker holds as many nodes as it can.
        """
        if peer not in self._nodes and len(self._nodes) >= MAX_NODES:
            raise LimitExceeded(f"{MAX_NODES} nodes are registered already")
        known = self._nodes.get(peer)
        room = Room(offer.load) if known is None else known.room
        room.registered(offer.load, offer.sessions)
        self._nodes[peer] = Node(peer, offer, room, now, owner)
        self._served.pop(offer.fingerprint, None)
        self._served[offer.fingerprint] = None
        if len(self._served) > MAX_NODES:
            del self._served[next(iter(self._served))]

    def heartbeat(self, peer: bytes, load: Load, now: float) -> None:
        """Note that a node lives, and its load. Raises `NodeUnknown`."""
        node = self._nodes.get(peer)
        if node is None:
            raise NodeUnknown("this broker does not know the node: register again")
        node.room.told(load)
        node.heard_at = now

    def drop(self, peer: bytes) -> bool:
        """Forget a node; whether it was known."""
        return self._nodes.pop(peer, None) is not None

    def forgive(self, seconds: float) -> None:
        """Take every node as heard of that much later: it may have spoken, and nobody listened."""
        for node in self._nodes.values():
            node.heard_at += seconds

    def silent(self, now: float) -> list[bytes]:
        """The nodes not heard of for longer than the timeout."""
        return [n.peer for n in self._nodes.values() if now - n.heard_at > self._timeout_s]

    def accepted(self, peer: bytes, session: bytes) -> None:
        """A node took a session in."""
        if peer in self._nodes:
            self._nodes[peer].room.accepted(session)

    def ended(self, peer: bytes, session: bytes) -> None:
        """A session was refused or is over: its room is there for the next."""
        if peer in self._nodes:
            self._nodes[peer].room.ended(session)

    def place(self, session: bytes, asked: Open) -> Node:
        """The node with most free KV of those that have room, with room set aside on it.

        It is of the session's model, holds its adapter, and has a slot and the KV for it. If it is
        a stage of a chain, so are and have nodes of the blocks after its own.

        Raises:
            FingerprintMismatch: no node serves the client's model and cut, or has done so.
            AdapterUnknown, AdapterMismatch: none of those holds the adapter.
            LimitExceeded: a later stage could never hold it.
            Busy: all that serve it are full, or away.
        """
        best = self._best(asked)
        best.room.promise(session, asked.max_positions)
        return best

    def lack(self, asked: Open) -> str:
        """What a session that is to wait waits for."""
        try:
            self._best(asked)
        except FedSeaError as error:
            return str(error)
        return "others are in line"

    def _best(self, asked: Open) -> Node:
        fits = [n for n in self.trunks if n.offer.fingerprint == asked.fingerprint]
        if not fits and asked.fingerprint in self._served:
            raise Busy("all nodes of this model are away")
        if not fits:
            served = sorted({n.offer.fingerprint[:12] for n in self.trunks})
            raise FingerprintMismatch(
                f"no node serves model and cut {asked.fingerprint[:12]}; "
                f"served: {', '.join(served[:8]) or 'none'}"
            )
        if not _entries(fits, asked):
            raise Busy("not all blocks of this model are served now")
        if asked.adapter is not None:
            check_held(asked.adapter, [ref for n in fits for ref in n.offer.adapters])
            fits = [n for n in fits if n.holds(asked.adapter)]
        into = _entries(fits, asked)
        if not into:
            raise AdapterUnknown("the adapter is not held by nodes of all blocks")
        if asked.max_positions > max(n.room.load.kv_positions_total for n in into):
            # A session that no node could ever hold goes to one all the same, which says so.
            return max(into, key=lambda node: node.room.load.kv_positions_total)
        able = [n for n in fits if n.room.load.kv_positions_total >= asked.max_positions]
        if not _entries(able, asked):
            raise LimitExceeded("more KV positions than nodes of all blocks could ever hold")
        roomy = _entries([n for n in fits if n.takes(asked)], asked)
        if not roomy:
            raise Busy("all nodes are full")
        return max(roomy, key=lambda node: node.room.positions_free)

    def of_run(self, asked: Enlist) -> Node | None:
        """The node of this role in a training run, the first by name; None if there is none."""
        wanted = (asked.role, asked.run)
        fits = [n for n in self._nodes.values() if (n.offer.role, n.offer.run) == wanted]
        return min(fits, key=lambda node: node.offer.name, default=None)

    def statuses(self, now: float, waiting: Collection[Open] = ()) -> list[NodeStatus]:
        """One line a node, by name, with how many of those that wait do so for one like it."""
        short = self._short(waiting)
        return sorted(
            (
                NodeStatus(
                    name=node.offer.name,
                    fingerprint=node.offer.fingerprint,
                    head_blocks=node.offer.head_blocks,
                    tail_blocks=node.offer.tail_blocks,
                    silent_ms=max(0, round((now - node.heard_at) * 1000)),
                    load=node.room.load,
                    role=node.offer.role,
                    run=node.offer.run,
                    stage=node.offer.stage,
                    waiting=short.get((node.offer.fingerprint, node.offer.stage), 0),
                )
                for node in self._nodes.values()
            ),
            key=lambda status: status.name,
        )

    def _short(self, waiting: Collection[Open]) -> dict[tuple[str, Stage | None], int]:
        """Of each model and stage, how many want to come by it and find no node with room."""
        alike: dict[tuple[str, Stage | None], list[Node]] = {}
        for node in self.trunks:
            alike.setdefault((node.offer.fingerprint, node.offer.stage), []).append(node)
        wanted: dict[tuple[object, ...], list[Open]] = {}
        for one in waiting:
            kind = (one.fingerprint, one.entry, one.adapter, one.max_positions)
            wanted.setdefault(kind, []).append(one)
        return {
            (fingerprint, stage): sum(
                len(asks)
                for asks in wanted.values()
                if asks[0].fingerprint == fingerprint
                and comes_by(stage, asks[0].entry)
                and not any(node.takes(asks[0]) for node in nodes)
            )
            for (fingerprint, stage), nodes in alike.items()
        }


def _entries(nodes: Sequence[Node], asked: Open) -> list[Node]:
    """Those of them that a session enters by, and that lead through the others to the end."""
    found = entries([node.offer.stage for node in nodes], asked.entry)
    return [nodes[index] for index in found]
