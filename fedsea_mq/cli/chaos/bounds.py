"""What must hold at any time: nothing is held beyond its bound, and what is held adds up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedsea_mq.cli.chaos.jobs import ClientParty
from fedsea_mq.cli.chaos.parties import BrokerParty, TrunkParty

# Of a session: what it sends, the renewal of its lease, and one by which it tries the direct way.
_REQUESTS_A_JOB = 3
_PLACES_IN_LINE = 256


def excesses(
    broker: BrokerParty, trunks: Sequence[TrunkParty], clients: Sequence[ClientParty]
) -> Iterator[str]:
    """Each thing of which there is too much, in words."""
    for trunk in trunks:
        if trunk.serves:
            yield from (f"{trunk.name} has {what}" for what in _of_trunk(trunk))
    if broker.runs and broker.broker is not None:
        for line in broker.broker._running._state.admission._lines.values():
            if len(line) > _PLACES_IN_LINE:
                yield f"the broker has {len(line)} places in line"
    for client in clients:
        if client.pending > _REQUESTS_A_JOB * client.left:
            yield f"{client.name} has {client.pending} requests under way for {client.left} jobs"


def _of_trunk(trunk: TrunkParty) -> Iterator[str]:
    node = trunk.node
    assert node is not None
    parts = node._running
    held, terms = parts.sessions, parts.sessions.terms
    if len(held) > terms.max_sessions:
        yield f"{len(held)} sessions, at most {terms.max_sessions}"
    reserved = sum(session.opened.max_positions for session in held._sessions.values())
    if held.kv_free < 0 or held.kv_free + reserved != terms.kv_positions:
        yield f"{held.kv_free} free and {reserved} reserved of {terms.kv_positions} KV positions"
    waiting = len(parts.batcher._scheduler)
    for what, count in (
        ("caches", len(node._caches)),
        ("works that wait", waiting),
        ("habits of sessions", parts.batcher._arrivals.sessions),
    ):
        if count > len(held):
            yield f"{count} {what} of {len(held)} sessions"
