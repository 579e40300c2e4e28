"""Where a new session goes: to the node of its model with most free KV."""

from __future__ import annotations

import secrets

import pytest

from broker.registry import Registry
from fedsea_mq.errors import (
    AdapterMismatch,
    AdapterUnknown,
    Busy,
    FingerprintMismatch,
    LimitExceeded,
    NodeUnknown,
)
from fedsea_mq.protocol.adapter_ref import AdapterRef
from fedsea_mq.protocol.messages import MAX_NODES, Open
from fedsea_mq.protocol.payload import WireDtype
from tests.unit.broker.placing import LLAMA, QWEN, S1, S2, load, offer


def asks(positions: int, fingerprint: str = LLAMA, adapter: AdapterRef | None = None) -> Open:
    return Open(
        fingerprint=fingerprint, max_positions=positions, dtype=WireDtype.FP16, adapter=adapter
    )


def place(registry: Registry, asked: Open, session: bytes = b"") -> bytes:
    """Where a session goes, of an id of its own if none is given."""
    return registry.place(session or secrets.token_bytes(16), asked).peer


@pytest.fixture
def registry() -> Registry:
    """Two nodes of one model, the second with more room, and one of another."""
    registry = Registry(timeout_s=5.0)
    registry.register(b"small", offer("small", free=60), 0.0)
    registry.register(b"large", offer("large", free=100), 0.0)
    registry.register(b"other", offer("other", free=900, total=900, fingerprint=QWEN), 0.0)
    return registry


def test_a_session_goes_to_the_node_of_its_model_with_most_free_kv(registry: Registry) -> None:
    assert place(registry, asks(10)) == b"large"
    assert place(registry, asks(10, QWEN)) == b"other"


def test_room_is_set_aside_until_the_node_tells_its_load(registry: Registry) -> None:
    placed = [place(registry, asks(30), bytes([n])) for n in range(5)]
    assert placed == [b"large", b"large", b"small", b"large", b"small"]
    with pytest.raises(Busy):
        place(registry, asks(30))
    registry.accepted(b"small", bytes([2]))
    registry.accepted(b"small", bytes([4]))
    registry.heartbeat(b"small", load(free=30), 1.0)
    assert place(registry, asks(30)) == b"small"


def test_given_no_node_of_the_model_then_the_refusal_says_what_is_served(
    registry: Registry,
) -> None:
    with pytest.raises(FingerprintMismatch, match="efefefefefef; served: abababababab, cdcd"):
        place(registry, asks(1, "ef" * 32))
    with pytest.raises(FingerprintMismatch, match="served: none"):
        place(Registry(5.0), asks(1))


def test_given_all_full_then_busy(registry: Registry) -> None:
    registry.heartbeat(b"large", load(free=0), 1.0)
    with pytest.raises(Busy):
        place(registry, asks(61))


def test_given_no_free_slot_then_a_session_goes_where_there_is_one_whoever_has_more_kv(
    registry: Registry,
) -> None:
    registry.heartbeat(b"large", load(free=100, slots=1), 1.0)
    assert place(registry, asks(1)) == b"large"
    assert place(registry, asks(1)) == b"small"
    registry.heartbeat(b"large", load(free=100, slots=0), 2.0)
    registry.heartbeat(b"small", load(free=60, slots=0), 2.0)
    with pytest.raises(Busy):
        place(registry, asks(1))


@pytest.mark.parametrize("accepted", [True, False], ids=["over", "refused"])
def test_room_of_a_session_that_ended_is_there_for_the_next_at_once(
    registry: Registry, accepted: bool
) -> None:
    assert place(registry, asks(100), S1) == b"large"
    if accepted:
        registry.accepted(b"large", S1)
        registry.heartbeat(b"large", load(free=0, slots=0), 1.0)
    with pytest.raises(Busy):
        place(registry, asks(100), S2)
    registry.ended(b"large", S1)
    assert place(registry, asks(100), S2) == b"large"


def test_room_that_the_node_has_told_of_is_not_given_back_a_second_time(
    registry: Registry,
) -> None:
    assert place(registry, asks(100), S1) == b"large"
    registry.accepted(b"large", S1)
    registry.ended(b"large", S1)
    registry.heartbeat(b"large", load(free=100), 1.0)
    registry.ended(b"large", S1)
    assert place(registry, asks(100), S2) == b"large"
    with pytest.raises(Busy):
        place(registry, asks(61))


def test_a_session_that_the_node_has_yet_to_accept_is_not_in_the_load_it_tells(
    registry: Registry,
) -> None:
    assert place(registry, asks(100), S1) == b"large"
    registry.heartbeat(b"large", load(free=100), 1.0)
    with pytest.raises(Busy):
        place(registry, asks(61))


def test_of_a_session_from_before_the_broker_only_the_node_knows_the_room(
    registry: Registry,
) -> None:
    registry.register(b"large", offer("large", free=0, sessions=[S1]), 0.0)
    registry.ended(b"large", S1)
    with pytest.raises(Busy):
        place(registry, asks(100))
    registry.heartbeat(b"large", load(free=100), 1.0)
    assert place(registry, asks(100)) == b"large"


def test_given_a_session_no_node_could_ever_hold_then_a_node_is_asked_and_no_room_set_aside(
    registry: Registry,
) -> None:
    for _ in range(3):
        assert place(registry, asks(101)) in (b"large", b"small")
    assert place(registry, asks(100)) == b"large"


def test_a_node_is_silent_once_it_was_not_heard_for_longer_than_the_timeout(
    registry: Registry,
) -> None:
    registry.heartbeat(b"large", load(), 3.0)
    registry.register(b"small", offer("small"), 1.0)
    assert registry.silent(5.0) == []
    assert registry.silent(5.1) == [b"other"]
    assert sorted(registry.silent(6.1)) == [b"other", b"small"]


def test_a_node_that_is_dropped_must_register_again(registry: Registry) -> None:
    assert registry.drop(b"large")
    assert not registry.drop(b"large")
    assert len(registry) == 2
    with pytest.raises(NodeUnknown):
        registry.heartbeat(b"large", load(), 1.0)


def test_the_number_of_nodes_is_bounded_and_known_ones_may_still_renew() -> None:
    registry = Registry(5.0)
    for number in range(MAX_NODES):
        registry.register(str(number).encode(), offer("n"), 0.0)
    with pytest.raises(LimitExceeded):
        registry.register(b"one more", offer("n"), 0.0)
    registry.register(b"0", offer("n"), 1.0)
    assert len(registry) == MAX_NODES


def test_statuses_are_sorted_by_name(registry: Registry) -> None:
    assert [status.name for status in registry.statuses(1.0)] == ["large", "other", "small"]


FORMAL, OTHER = AdapterRef("formal", "12" * 32), AdapterRef("formal", "34" * 32)


def test_a_session_goes_to_a_node_that_holds_its_adapter_whoever_has_more_room(
    registry: Registry,
) -> None:
    registry.register(b"small", offer("small", free=60, adapters=[FORMAL]), 0.0)
    assert place(registry, asks(10, adapter=FORMAL)) == b"small"
    assert place(registry, asks(10)) == b"large"
    # A node of another set under the same name is no choice, and neither is waiting for one.
    registry.register(b"large", offer("large", free=100, adapters=[OTHER]), 0.0)
    assert place(registry, asks(10, adapter=FORMAL)) == b"small"
    assert place(registry, asks(10, adapter=OTHER)) == b"large"
    with pytest.raises(Busy):
        place(registry, asks(70, adapter=FORMAL))


def test_given_no_node_with_the_adapter_then_the_refusal_names_it(registry: Registry) -> None:
    with pytest.raises(AdapterUnknown, match="adapter formal"):
        place(registry, asks(10, adapter=FORMAL))
    registry.register(b"large", offer("large", adapters=[OTHER]), 0.0)
    with pytest.raises(
        AdapterMismatch, match=r"adapter formal: .* 121212121212, held: 343434343434"
    ):
        place(registry, asks(10, adapter=FORMAL))
    # An adapter of another model's node is not of this one.
    registry.register(b"other", offer("other", fingerprint=QWEN, adapters=[FORMAL]), 0.0)
    with pytest.raises(AdapterMismatch):
        place(registry, asks(10, adapter=FORMAL))
