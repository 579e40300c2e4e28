"""What of a broker's report is well."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedsea_mq.cli.health import judged
from fedsea_mq.errors import NotReady
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.messages import Load, NodeStatus, StatusReport
from fedsea_mq.protocol.stage import Stage


def node(name: str, *, silent_ms: int = 0, slots: int = 4, role: Role = Role.TRUNK) -> NodeStatus:
    load = Load(kv_positions_free=9, kv_positions_total=9, sessions=0, sessions_free=slots)
    run = "silos" if role is Role.AGGREGATOR else None
    return NodeStatus(name, "ab" * 32, 1, 1, silent_ms, load, role, run)


def report(*nodes: NodeStatus) -> StatusReport:
    return StatusReport(5.0, 0, 0, 0, 0, list(nodes))


def test_enough_nodes_that_take_sessions_are_well() -> None:
    said = judged(report(node("a"), node("b")), 1000, 2, "b")
    assert said == "broker up 5 s, 2 trunk nodes take sessions"
    judged(report(), 1000, 0, None)


@pytest.mark.parametrize(
    "other",
    [
        node("b", silent_ms=1001),
        node("b", slots=0),
        node("b", role=Role.AGGREGATOR),
    ],
    ids=["silent", "draining or full", "an aggregator"],
)
def test_others_do_not_count(other: NodeStatus) -> None:
    with pytest.raises(NotReady, match="1 trunk node takes sessions, of 2"):
        judged(report(node("a"), other), 1000, 2, None)


def test_a_chain_counts_once_and_only_whole() -> None:
    front = replace(node("front"), stage=Stage(1, 3, 1, 7))
    back = replace(node("back"), stage=Stage(3, 7, 1, 7))
    judged(report(front, back), 1000, 1, None)
    for there in ((front,), (back,), (front, replace(back, load=node("full", slots=0).load))):
        with pytest.raises(NotReady, match="0 trunk nodes take sessions, of 1"):
            judged(report(*there), 1000, 1, None)


def test_a_node_that_drains_lives_and_one_that_is_silent_does_not() -> None:
    assert judged(report(node("a", slots=0)), 1000, 0, "a")
    for nodes in ([], [node("a", silent_ms=1001)]):
        with pytest.raises(NotReady, match="called a"):
            judged(report(*nodes), 1000, 0, "a")
