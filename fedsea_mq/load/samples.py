"""The system under load, once a second: what its nodes report and what its processes hold."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import psutil

from fedsea_mq.protocol.messages import StatusReport


@dataclass(frozen=True, slots=True)
class Sample:
    """All nodes together; rates and peaks are over the last heartbeat interval."""

    at_s: float
    sessions: int
    """Most sessions that were open at a time, each node's own time."""
    batch: float
    """Mean sessions of a step, over the nodes that took steps."""
    busy: float
    """Mean share of the time in which a node computed."""
    positions_per_s: float
    kv_reserved: int
    kv_positions: int
    """Most KV positions that sessions had reserved, and all that there are."""
    rss_bytes: dict[str, int]
    open_files: dict[str, int]
    """Sockets among them, by process; as `rss_bytes`, of those that run."""
    busy_of: dict[str, float] = field(default_factory=dict)
    """The share of the time in which each node computed, by its name."""


@dataclass(slots=True)
class Samples:
    """A run's samples, from `begun_at` on."""

    pids: Mapping[str, int]
    begun_at: float = field(default_factory=time.monotonic)
    taken: list[Sample] = field(default_factory=list)

    def take(self, report: StatusReport) -> Sample:
        """Note the broker's report and the processes' memory now."""
        loads = [node.load for node in report.nodes]
        stepping = [load for load in loads if load.mean_batch]
        sample = Sample(
            at_s=time.monotonic() - self.begun_at,
            sessions=sum(load.sessions_peak for load in loads),
            batch=_mean([load.mean_batch for load in stepping]),
            busy=_mean([load.busy_share for load in loads]),
            positions_per_s=sum(load.positions_per_s for load in loads),
            kv_reserved=sum(load.kv_positions_peak for load in loads),
            kv_positions=sum(load.kv_positions_total for load in loads),
            rss_bytes={name: rss for name, pid in self.pids.items() if (rss := _rss(pid))},
            busy_of={node.name: node.load.busy_share for node in report.nodes},
            open_files={name: held for name, pid in self.pids.items() if (held := _files(pid))},
        )
        self.taken.append(sample)
        return sample

    def between(self, from_s: float, until_s: float) -> list[Sample]:
        """The samples whose whole interval lies in that time."""
        return [
            after
            for before, after in pairwise(self.taken)
            if before.at_s >= from_s and after.at_s <= until_s
        ]


def _rss(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0  # it has ended


def _files(pid: int) -> int:
    try:
        return int(psutil.Process(pid).num_fds())
    except psutil.Error:
        return 0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
