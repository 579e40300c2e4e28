"""How many trunk nodes a load needs: at once when it rises, and after a while when it falls."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsea_mq.cli.ray.scaling import Demand, Scaler, demand_of
from fedsea_mq.protocol.messages import Load, NodeStatus, StatusReport
from fedsea_mq.ray_settings import RaySection

TERMS = RaySection(min_nodes=1, max_nodes=4, settle_s=10.0)


def node(
    name: str, *, sessions: int = 0, peak: int = 0, kv_peak: int = 0, waiting: int = 0
) -> NodeStatus:
    load = Load(
        kv_positions_free=100 - kv_peak,
        kv_positions_total=100,
        sessions=sessions,
        sessions_free=64,
        sessions_peak=peak,
        kv_positions_peak=kv_peak,
    )
    return NodeStatus(name, "ab" * 32, 1, 1, 0, load, waiting=waiting)


def demand(*nodes: NodeStatus) -> Demand:
    report = StatusReport(5.0, 0, 0, 0, 0, list(nodes), 7)
    return demand_of(report, {"a", "b"}, ready=2, node_sessions=8)


def test_demand_is_what_sessions_and_kv_fill_whichever_is_more_of_each_node() -> None:
    assert demand().nodes == 0
    assert demand(node("a", sessions=4), node("b", sessions=2, peak=6)).nodes == 0.5 + 0.75
    assert demand(node("a", sessions=4, kv_peak=90)).nodes == 0.9


def test_what_others_started_is_not_scaled() -> None:
    found = demand(node("a", sessions=4), node("stranger", sessions=64, waiting=3))
    assert (found.nodes, found.waiting) == (0.5, 0)


def test_what_waits_for_another_stage_is_not_waited_for_here() -> None:
    assert demand(node("a", waiting=3), node("b", waiting=3)).waiting == 3
    assert demand(node("a"), node("b")).waiting == 0


@pytest.mark.parametrize(("nodes", "wanted"), [(0.0, 1), (1.0, 1), (1.1, 2), (3.2, 4), (9.0, 4)])
def test_as_many_as_are_filled_within_the_bounds(nodes: float, wanted: int) -> None:
    assert Scaler(TERMS).wanted(Demand(nodes, waiting=0, ready=1), 0.0) == wanted


def test_while_sessions_wait_one_more_than_is_ready_and_then_the_next() -> None:
    scaler = Scaler(TERMS)
    for now in range(5):
        assert scaler.wanted(Demand(0.5, waiting=7, ready=1), float(now)) == 2
    assert scaler.wanted(Demand(0.5, waiting=7, ready=2), 5.0) == 3


def test_fewer_are_wanted_once_they_were_enough_for_the_whole_time() -> None:
    scaler = Scaler(TERMS)
    assert scaler.wanted(Demand(2.5, waiting=0, ready=1), 0.0) == 3
    assert scaler.wanted(Demand(0.5, waiting=0, ready=3), 10.0) == 3
    assert scaler.wanted(Demand(0.5, waiting=0, ready=3), 10.1) == 1


def test_a_load_that_swings_faster_than_it_settles_changes_nothing() -> None:
    scaler = Scaler(TERMS)
    swing = [Demand(2.5 if second % 9 == 0 else 0.1, 0, 3) for second in range(200)]
    assert {scaler.wanted(one, float(second)) for second, one in enumerate(swing)} == {3}


@given(st.lists(st.tuples(st.floats(0, 9), st.integers(0, 3), st.floats(0.1, 20)), max_size=60))
def test_it_is_the_most_that_was_needed_in_the_time_in_which_less_must_be_enough(
    steps: list[tuple[float, int, float]],
) -> None:
    scaler, now, ready = Scaler(TERMS), 0.0, 1
    needed: list[tuple[float, int]] = []
    for nodes, waiting, passed_s in steps:
        now += passed_s
        least = max(math.ceil(nodes), ready + 1 if waiting else 0, TERMS.min_nodes)
        needed.append((now, min(least, TERMS.max_nodes)))
        ready = scaler.wanted(Demand(nodes, waiting, ready), now)
        assert ready == max(count for at, count in needed if at >= now - TERMS.settle_s)
