"""Who is refused has a place in the order, as long as it comes back for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedsea_mq.protocol.waiting_list import Room, WaitingList

ANNA, BERT, CARL = b"anna", b"bert", b"carl"
FULL = Room(sessions=0, positions=0)


def test_given_room_then_nobody_waits() -> None:
    waiting = WaitingList()
    assert waiting.admit(ANNA, 10, Room(1, 10), now=0.0) is None
    assert len(waiting) == 0


def test_given_one_that_waits_then_room_for_one_is_not_for_who_comes_later() -> None:
    waiting = WaitingList()
    assert waiting.admit(ANNA, 10, FULL, now=0.0) is not None
    assert waiting.admit(BERT, 10, Room(1, 100), now=0.1) is not None
    assert waiting.admit(BERT, 10, Room(2, 100), now=0.2) is None
    assert waiting.admit(ANNA, 10, Room(1, 100), now=0.5) is None


def test_given_a_large_session_that_waits_then_small_ones_do_not_take_what_it_waits_for() -> None:
    waiting = WaitingList()
    assert waiting.admit(ANNA, 100, Room(5, 60), now=0.0) is not None
    assert waiting.admit(BERT, 10, Room(5, 60), now=0.1) is not None
    assert waiting.admit(ANNA, 100, Room(5, 100), now=0.5) is None


def test_given_one_that_does_not_come_back_then_its_place_is_lost() -> None:
    waiting = WaitingList()
    pause_s = waiting.admit(ANNA, 10, FULL, now=0.0)
    assert pause_s is not None
    assert waiting.admit(BERT, 10, Room(1, 100), now=pause_s) is not None
    assert waiting.admit(BERT, 10, Room(1, 100), now=pause_s + 60) is None


def test_given_one_that_keeps_asking_then_it_keeps_its_place() -> None:
    waiting = WaitingList()
    now = 0.0
    for session in (ANNA, BERT, CARL):
        waiting.admit(session, 10, FULL, now)
    for _ in range(20):
        pause_s = waiting.admit(ANNA, 10, FULL, now)
        assert pause_s is not None
        now += pause_s
    assert waiting.admit(CARL, 10, Room(1, 100), now) is not None
    assert waiting.admit(ANNA, 10, Room(1, 100), now) is None


def test_those_further_down_the_list_are_to_come_back_later() -> None:
    waiting = WaitingList()
    pauses = [waiting.admit(bytes([n]), 1, FULL, now=0.0) or 0.0 for n in range(100)]
    assert pauses == sorted(pauses)
    assert pauses[0] < pauses[-1] < 10


def test_given_a_full_list_then_others_keep_no_place() -> None:
    waiting = WaitingList(most=1)
    waiting.admit(ANNA, 1, FULL, now=0.0)
    assert waiting.admit(BERT, 1, FULL, now=0.0) is not None
    assert len(waiting) == 1


@given(
    slots=st.integers(1, 5),
    clients=st.integers(1, 40),
    lasts=st.lists(st.floats(0.1, 5), min_size=1, max_size=20),
)
def test_given_any_sessions_then_all_get_in_in_the_order_of_their_first_ask(
    slots: int, clients: int, lasts: list[float]
) -> None:
    """Everybody asks at once and again when told; who gets in stays for a while."""
    waiting, now = WaitingList(), 0.0
    asks = [(n * 1e-6, n) for n in range(clients)]
    ends: list[float] = []
    admitted: list[int] = []
    while asks:
        now, client = min(asks)
        asks.remove((now, client))
        ends = [end for end in ends if end > now]
        pause_s = waiting.admit(bytes([client]), 1, Room(slots - len(ends), 1000), now)
        if pause_s is None:
            admitted.append(client)
            ends.append(now + lasts[client % len(lasts)])
        else:
            asks.append((now + pause_s, client))
        assert len(ends) <= slots
    # With several slots, one further down may find a second one free before the first is back.
    assert all(abs(place - client) < slots for place, client in enumerate(admitted))
    assert sorted(admitted) == list(range(clients))
