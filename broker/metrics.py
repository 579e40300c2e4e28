"""The broker's metrics, read from what it counts anyway."""

from __future__ import annotations

from collections.abc import Iterable

from broker.core import BrokerCore
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.telemetry import measures
from fedsea_mq.telemetry.measures import Reading
from fedsea_mq.transport.frame_counts import Direction, refused_readings


def readings(core: BrokerCore) -> Iterable[Reading]:
    """All of them, now."""
    counters = core.counters
    yield from (measures.NODES.of(core.nodes(role), role.value) for role in Role)
    yield measures.SESSIONS.of(core.sessions)
    yield measures.QUEUE_DEPTH.of(core.waiting)
    yield measures.FRAMES.of(counters.frames_up, Direction.UP)
    yield measures.FRAMES.of(counters.frames_down, Direction.DOWN)
    yield measures.BYTES.of(counters.bytes_up, Direction.UP)
    yield measures.BYTES.of(counters.bytes_down, Direction.DOWN)
    yield measures.BUSY.of(counters.busy)
    yield measures.PEERS_LET_GO.of(counters.let_go)
    yield from refused_readings(counters.refused)
