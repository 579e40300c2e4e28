"""Ranks compute together only if all have come, once each, with the same."""

from __future__ import annotations

import threading

import pytest

from fedsea_mq.errors import EndpointUnavailable, FedSeaError, RankLost, RankMismatch
from fedsea_mq.model.tensor_shard import TensorShard
from fedsea_mq.tensor_parallel.rendezvous import Introduction, Listener, find, gather, introduce

SAME, OTHER = Introduction("same", 1), Introduction("other", 1)
LEAD, SECOND = TensorShard(0, 2), TensorShard(1, 2)


class Arrival(threading.Thread):
    """Another rank that comes, and what became of it."""

    def __init__(self, listener: Listener, own: Introduction, shard: TensorShard = SECOND) -> None:
        super().__init__()
        self._come = (listener.endpoint, shard, own)
        self.error: FedSeaError | None = None
        self.start()

    def run(self) -> None:
        endpoint, shard, own = self._come
        try:
            store, _ = find(endpoint)
            introduce(store, shard, own)
        except FedSeaError as error:
            self.error = error


def test_those_that_hold_the_same_are_let_go_on() -> None:
    listener = Listener()
    store = listener.store()
    arrival = Arrival(listener, Introduction("same", 7))
    assert [one.tensor_bytes for one in gather(store, LEAD, SAME)] == [1, 7]
    arrival.join()
    assert arrival.error is None


def test_a_rank_of_another_model_is_refused_and_all_are_told() -> None:
    listener = Listener()
    store = listener.store()
    arrivals = [Arrival(listener, own, TensorShard(n, 3)) for n, own in ((1, SAME), (2, OTHER))]
    with pytest.raises(RankMismatch):
        gather(store, TensorShard(0, 3), SAME)
    for arrival in arrivals:
        arrival.join()
        assert isinstance(arrival.error, RankMismatch)


def test_a_place_is_taken_once() -> None:
    listener = Listener()
    store = listener.store()
    first = Arrival(listener, SAME)
    gather(store, LEAD, SAME)
    first.join()
    second = Arrival(listener, SAME)
    second.join()
    assert isinstance(second.error, RankMismatch)


def test_nobody_waits_for_a_rank_that_will_not_come() -> None:
    listener = Listener()
    with pytest.raises(RankLost):
        gather(listener.store(), LEAD, SAME, is_lost=lambda: True)


def test_it_listens_on_loopback_unless_told_otherwise_and_says_if_it_cannot() -> None:
    listener = Listener()
    assert listener.endpoint.startswith("tcp://127.0.0.1:")
    with pytest.raises(EndpointUnavailable):
        Listener(listener.endpoint)
    listener.close()
    Listener(listener.endpoint).close()
