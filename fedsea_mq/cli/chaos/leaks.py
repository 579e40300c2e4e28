"""What is still held when nobody wants anything any more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedsea_mq.cli.chaos.parties import BrokerParty, TrunkParty


def leaks(broker: BrokerParty, trunks: Sequence[TrunkParty]) -> Iterator[str]:
    """Each thing that is held without need, in words."""
    for trunk in trunks:
        if trunk.serves:
            yield from (f"{trunk.name} holds {what}" for what in _of_trunk(trunk))
        else:
            yield f"{trunk.name} does not run"
    if not broker.runs:
        yield "the broker does not run"
    else:
        yield from (f"the broker holds {what}" for what in _of_broker(broker, trunks))


def _of_trunk(trunk: TrunkParty) -> Iterator[str]:
    node = trunk.node
    assert node is not None
    parts = node._running
    if node.sessions:
        yield f"{node.sessions} sessions"
    if node.kv_positions_free != parts.sessions.terms.kv_positions:
        yield f"{parts.sessions.terms.kv_positions - node.kv_positions_free} KV positions"
    if node._caches:
        yield f"{len(node._caches)} caches"
    if len(parts.batcher._scheduler) or parts.batcher._arrivals.sessions:
        yield "work of sessions that ended"


def _of_broker(broker: BrokerParty, trunks: Sequence[TrunkParty]) -> Iterator[str]:
    assert broker.broker is not None
    core = broker.broker._running
    if len(core._state.routes):
        yield f"{len(core._state.routes)} routes"
    if core._state.admission._lines:
        yield "places in line"
    names = sorted(node.offer.name for node in core._state.registry.trunks)
    if names != sorted(trunk.name for trunk in trunks):
        yield f"nodes {', '.join(names) or 'none'}"
    for node in core._state.registry.trunks:
        taken = node.room.load.kv_positions_total - node.room.positions_free
        if taken:
            yield f"{taken} positions of {node.offer.name}"
