"""From settings and speeds to a forecaster of their cuts."""

from __future__ import annotations

from fedsea_mq.load.plan import Link
from fedsea_mq.planning.architecture import Architecture
from fedsea_mq.planning.forecast import Demand, Forecaster, Room
from fedsea_mq.planning.machine import Machine
from fedsea_mq.planning.speed import Speed
from fedsea_mq.planning.traffic import Terms
from fedsea_mq.protocol.payload import PayloadSpec
from fedsea_mq.settings import Settings


def forecaster(
    of: Architecture, settings: Settings, speeds: tuple[Speed, Speed], link: Link, demand: Demand
) -> Forecaster:
    """Of a client and a trunk node of these `speeds`; bounds and wire are the settings'."""
    client, trunk = (Machine.running(of, speed) for speed in speeds)
    bounds = settings.trunk
    terms = Terms(
        PayloadSpec(settings.client.wire_dtype, of.hidden),
        bounds.max_frame_positions,
        lease_ms=round(bounds.lease_s * 1000),
        give_up_ms=round(settings.client.give_up_s * 1000),
    )
    room = Room(bounds.kv_memory_mb << 20, bounds.max_sessions)
    return Forecaster(client, trunk, link, demand, terms, room)
