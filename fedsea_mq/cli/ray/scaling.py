"""How many trunk nodes there should be. Pure: reports and times in, a number out.

More nodes are wanted at once; fewer, only after they were enough for `ray.settle_s`. So load that
goes up and down within that time starts no node twice.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from fedsea_mq.protocol.messages import Load, StatusReport
from fedsea_mq.ray_settings import RaySection


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of the trunk.

    `nodes` is how many of them all sessions fill; `waiting` sessions find no room on the `ready`
    ones.
    """

    nodes: float
    waiting: int
    ready: int


def demand_of(
    report: StatusReport, ours: Collection[str], ready: int, node_sessions: int
) -> Demand:
    """What the broker's report comes to.

    Of `ours` are all trunk nodes that hold sessions, those that are draining too: what they hold
    may move to the others. What belongs to others, as aggregators, is not scaled.
    """
    nodes = [node for node in report.nodes if node.name in ours]
    filled = _filled([node.load for node in nodes], node_sessions)
    # All of them are alike: what one is short of, all are.
    return Demand(filled, max((node.waiting for node in nodes), default=0), ready)


def _filled(loads: Iterable[Load], node_sessions: int) -> float:
    # Peaks, too: sessions that live for less than a heartbeat show in them only.
    return sum(
        max(
            max(load.sessions, load.sessions_peak) / node_sessions,
            load.kv_positions_peak / max(1, load.kv_positions_total),
        )
        for load in loads
    )


class Scaler:
    """Remembers what was wanted in the last `ray.settle_s`."""

    def __init__(self, terms: RaySection) -> None:
        self._terms = terms
        self._recent: deque[tuple[float, int]] = deque()

    def wanted(self, demand: Demand, now: float) -> int:
        """How many nodes there should be, from `ray.min_nodes` to `ray.max_nodes`.

        While sessions wait, it is one more than are ready: never more before that one is.
        """
        least = math.ceil(demand.nodes)
        if demand.waiting:
            least = max(least, demand.ready + 1)
        least = min(max(least, self._terms.min_nodes), self._terms.max_nodes)
        self._recent.append((now, least))
        while self._recent[0][0] < now - self._terms.settle_s:
            self._recent.popleft()
        return max(count for _, count in self._recent)
