"""A trunk node's metrics, read from what it counts anyway."""

from __future__ import annotations

from collections.abc import Iterable

from fedsea_mq.serving.trunk_sessions import TrunkSessions
from fedsea_mq.telemetry import measures
from fedsea_mq.telemetry.measures import Reading


def session_readings(sessions: TrunkSessions, bytes_per_position: int) -> Iterable[Reading]:
    """Of the sessions that are served."""
    terms, counters = sessions.terms, sessions.counters
    reserved = terms.kv_positions - sessions.kv_free
    yield measures.SESSIONS.of(len(sessions))
    yield measures.DIRECT_SESSIONS.of(sessions.direct)
    yield measures.KV_RESERVED.of(reserved * bytes_per_position)
    yield measures.KV_BUDGET.of(terms.kv_positions * bytes_per_position)
    yield measures.SESSIONS_OPENED.of(counters.opened)
    yield measures.LEASES_EXPIRED.of(counters.expired)
    yield measures.BUSY.of(counters.busy)
