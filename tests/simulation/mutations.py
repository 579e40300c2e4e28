"""Faults put into the product's own code, a line each, to see whether the simulation finds them."""

from __future__ import annotations
import __future__

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from broker.client_side import ClientSide
from broker.core import BrokerCore
from broker.node_side import NodeSide
from broker.registry import Registry
from broker.routes import Routes
from broker.state import BrokerState
from broker.waiting import Line
from fedsea_mq.cli.chaos.simulated import simulate
from fedsea_mq.protocol.positions import StatesLog, TrunkPositions
from fedsea_mq.serving import trunk_sessions
from fedsea_mq.serving.trunk_sessions import TrunkSessions
from fedsea_mq.transport.requests import Requests
from nodes.client.session import ClientSession
from nodes.remote_session import RemoteSession


@dataclass(frozen=True)
class Mutation:
    """`old` in a function's source becomes `new`."""

    name: str
    owner: Any
    function: str
    old: str
    new: str

    def __str__(self) -> str:
        return self.name.replace(" ", "-")

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While inside, the function is the mutated one."""
        held = inspect.getattr_static(self.owner, self.function)
        raw = getattr(held, "__func__", getattr(held, "fget", None)) or held
        source = textwrap.dedent(inspect.getsource(raw))
        assert source.count(self.old) == 1, f"{self.old!r} is not what {self.function} says"
        flags = __future__.annotations.compiler_flag
        text = source.replace(self.old, self.new)
        compiled = compile(text, "mutated", "exec", flags=flags, dont_inherit=True)
        made: dict[str, Any] = {}
        exec(compiled, raw.__globals__, made)
        with patch.object(self.owner, self.function, made[self.function]):
            yield

    def caught_by(self, seeds: int) -> int | None:
        """The first of so many seeds in which something broke."""
        with self.applied():
            return next((seed for seed in range(seeds) if simulate(seed).violations), None)


# What a few seeds find.
QUICK = (
    Mutation(
        "a gap of one position is let in",
        TrunkPositions,
        "receive",
        "body.cached > self.cached",
        "body.cached > self.cached + 1",
    ),
    Mutation(
        "one position back is not back",
        TrunkPositions,
        "receive",
        "if body.cached < self.cached:\n        if mark",
        "if body.cached < self.cached - 1:\n        if mark",
    ),
    Mutation(
        "a frame in flight is computed twice",
        TrunkPositions,
        "receive",
        "return Verdict.IN_FLIGHT",
        "return Verdict.APPLY",
    ),
    Mutation(
        "a lost reply is not told again",
        TrunkPositions,
        "receive",
        "mark == self._applied",
        "False",
    ),
    Mutation(
        "rewinding forgets nothing",
        TrunkPositions,
        "receive",
        "self.cached, self._applied, self.reply = body.cached, None, []",
        "pass",
    ),
    Mutation(
        "a lease never ends",
        TrunkSessions,
        "expire",
        "session.lease_until <= now",
        "False",
    ),
    Mutation(
        "room of a closed session is not given back",
        TrunkSessions,
        "_close",
        "self.kv_free += session.opened.max_positions",
        "pass",
    ),
    Mutation(
        "a stored reply keeps its old number",
        trunk_sessions,
        "_readdress",
        "envelope.seq",
        "0",
    ),
    Mutation(
        "any answer of a session will do",
        Requests,
        "_asked",
        "self._pending.get(frame.envelope.seq)",
        "next((p for p in self._pending.values() if p.session == frame.envelope.session), None)",
    ),
    Mutation(
        "a request is sent once",
        Requests,
        "_insist",
        "self._send_by_broker(pending)",
        "pass",
    ),
    Mutation(
        "the log keeps what was rolled back",
        StatesLog,
        "record",
        "del column[keep * size :]",
        "pass",
    ),
    Mutation(
        "a roll-back is not told to the trunk",
        ClientSession,
        "roll_back",
        "self.cached, self._trunk.rewinds = cached, True",
        "self.cached = cached",
    ),
    Mutation(
        "a recovered session lacks its last position",
        RemoteSession,
        "_recover",
        "await self._send(0, cached, 0)",
        "await self._send(0, max(1, cached - 1), 0)",
    ),
    Mutation(
        "silent nodes are never let go of",
        BrokerCore,
        "tick",
        "state.registry.silent(now)",
        "[]",
    ),
)
# What takes some more.
RARE = (
    Mutation(
        "late copies are computed",
        TrunkPositions,
        "receive",
        "number < self._newest",
        "False",
    ),
    Mutation(
        "a lease is not renewed",
        TrunkSessions,
        "_find",
        "session.lease_until = now + self.terms.lease_s",
        "pass",
    ),
    Mutation(
        "an idle session renews its lease once",
        RemoteSession,
        "_renew",
        "while True",
        "for _ in range(1)",
    ),
    Mutation(
        "a cancelled advance is forgotten",
        ClientSession,
        "_advance_chunk",
        "self._trunk.rewinds = True",
        "pass",
    ),
    Mutation(
        "a client leaves without a word",
        RemoteSession,
        "_tell_closed",
        "self._wires.requests.close(self.id)",
        "pass",
    ),
    Mutation(
        "a session that cannot be opened where it was sent is given up",
        RemoteSession,
        "_open_anywhere",
        "suppress(SessionLost, SessionUnknown)",
        "suppress()",
    ),
    Mutation(
        "an empty session is not recovered",
        RemoteSession,
        "extend",
        ", PositionGap)",
        ")",
    ),
    Mutation(
        "the route of a closed session stays",
        ClientSide,
        "_to_node",
        "state.end(envelope.session)",
        "pass",
    ),
    Mutation(
        "clients of a dead node are not told",
        BrokerState,
        "lose_node",
        "for told in closing(route, session, reason)",
        "for told in ()",
    ),
    Mutation(
        "room on a node that a session was also sent to stays taken",
        NodeSide,
        "_register",
        "state.registry.ended(route.node, session)",
        "pass",
    ),
    Mutation(
        "a restarted broker knows at once that a session is lost",
        BrokerState,
        "is_young",
        "now - self.started_at < self.terms.timeout_ms / 1000",
        "False",
    ),
    Mutation(
        "a node may hold fewer sessions than are routed to it",
        NodeSide,
        "_compare",
        "routed > load.sessions",
        "False",
    ),
    Mutation(
        "sessions that a node registers with are not routed",
        Routes,
        "registered",
        "in held.items():",
        "in ():",
    ),
    Mutation(
        "a model whose nodes are away is refused",
        Registry,
        "place",
        "asked.fingerprint in self._served",
        "False",
    ),
    Mutation(
        "who came last is served first",
        Line,
        "in_turn",
        "key=self._since",
        "key=lambda place: -place.number",
    ),
    Mutation(
        "one client always goes first",
        Line,
        "_since",
        "max(place.number, self._served.get(place.client, 0))",
        "int.from_bytes(place.client)",
    ),
)
