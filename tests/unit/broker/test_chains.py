"""Stages of a chain: who leads to the trunk's end, and who may take a session on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.chains import entries
from broker.messages import Send, Side
from fedsea_mq.errors import AdapterUnknown, Busy, LimitExceeded, RemoteError, SessionUnknown
from fedsea_mq.protocol.adapter_ref import AdapterRef
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Open
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.protocol.stage import Onward, Stage
from tests.unit.broker.placing import (
    LLAMA,
    S1,
    S2,
    S3,
    Placing,
    accept,
    load,
    offer,
    read,
    refused,
)

BEGIN, END = 1, 7
FRONT, MIDDLE, BACK = Stage(1, 3, 1, 7), Stage(3, 5, 1, 7), Stage(5, 7, 1, 7)
ASKED = Open(LLAMA, 10, WireDtype.FP16)


@st.composite
def stages(draw: st.DrawFn) -> Stage | None:
    if draw(st.integers(0, 9)) == 0:
        return None
    first = draw(st.integers(BEGIN, END - 1))
    return Stage(first, draw(st.integers(first + 1, END)), BEGIN, END)


def leads(start: int, spans: list[tuple[int, int]]) -> bool:
    """Whether spans can be laid one behind the other from `start` to the end: by trying all."""
    return start == END or any(first == start and leads(stop, spans) for first, stop in spans)


@given(st.lists(stages(), max_size=8), st.one_of(st.none(), st.integers(BEGIN + 1, END)))
def test_entries_are_the_nodes_from_which_every_block_to_the_end_is_served(
    found: list[Stage | None], block: int | None
) -> None:
    spans = [(one.first, one.stop) if one else (BEGIN, END) for one in found]
    start = BEGIN if block is None else block
    expected = [n for n, (first, stop) in enumerate(spans) if first == start and leads(stop, spans)]
    assert entries(found, block) == expected


@pytest.mark.parametrize(
    "stage", [FRONT, MIDDLE, BACK, Stage(1, 7, 1, 7), Stage(0, 1, 0, 1024)], ids=str
)
def test_a_stage_knows_its_entry_its_end_and_how_many_like_it_make_the_trunk(
    stage: Stage,
) -> None:
    assert stage.entry == (None if stage.first == stage.begin else stage.first)
    assert stage.is_last is (stage.stop == stage.end)
    assert stage.depth == {2: 3, 6: 1, 1: 1024}[stage.stop - stage.first]


def placing(**nodes: Any) -> Placing:
    """A broker with a node for each of these stages, under its name."""
    made = Placing()
    for name, stage in nodes.items():
        made.register(name.encode(), offer(name, stage=stage))
    return made


def asks(made: Placing, session: bytes, body: Open = ASKED, peer: bytes = b"client") -> Send:
    (sent,) = made.client_says(peer, Frame.build(Kind.OPEN, body, session=session))
    return sent


def onward(first: int, session: bytes) -> Open:
    return replace(ASKED, onward=Onward(first, session, b"somebody else"))


def test_a_session_enters_where_a_chain_begins_that_is_whole() -> None:
    made = placing(front=FRONT, back=BACK)
    refused(asks(made, S1), Busy)
    made.register(b"middle", offer("middle", stage=MIDDLE))
    assert asks(made, S2).peer == b"front"


def test_a_session_waits_where_a_later_stage_is_full() -> None:
    made = placing(front=FRONT, middle=MIDDLE)
    made.register(b"back", offer("back", stage=BACK, free=9))
    refused(asks(made, S1), Busy)


def test_who_waits_is_told_what_for() -> None:
    made = placing(front=FRONT, middle=MIDDLE)
    assert "not all blocks" in str(refused(asks(made, S1), Busy))
    made.register(b"back", offer("back", stage=BACK, free=9))
    assert "all nodes are full" in str(refused(asks(made, S2), Busy))


def waits(made: Placing) -> dict[str, int]:
    return {node.name: node.waiting for node in made.status().nodes}


def test_it_is_told_which_stage_those_that_wait_are_short_of() -> None:
    made = placing(front=FRONT, middle=MIDDLE)
    made.register(b"back", offer("back", stage=BACK, free=9))
    refused(asks(made, S1), Busy)
    # When it asks again, it is held.
    assert made.client_says(b"client", Frame.build(Kind.OPEN, ASKED, session=S1)) == []
    assert waits(made) == {"front": 0, "middle": 0, "back": 1}
    made.register(b"more", offer("more", stage=BACK))
    assert {node.waiting for node in made.status().nodes} == {0}


def test_a_session_that_goes_on_is_short_of_no_stage_before() -> None:
    made = placing(front=FRONT, middle=MIDDLE, back=BACK)
    assert asks(made, S1).peer == b"front"
    made.node_says(b"front", accept(S1))
    for name in (b"front", b"middle"):
        made.heartbeat(name, load(free=0))
    refused(asks(made, S2, onward(3, S1), b"front's"), Busy)
    asked = Frame.build(Kind.OPEN, onward(3, S1), session=S2)
    assert made.client_says(b"front's", asked) == []
    assert waits(made) == {"front": 0, "middle": 1, "back": 0}


def test_a_session_is_short_of_nodes_with_its_adapter_whatever_room_others_have() -> None:
    ref = AdapterRef("notes", "ef" * 32)
    made = placing(front=FRONT, middle=MIDDLE, back=BACK)
    for name, stage in (("front", FRONT), ("middle", MIDDLE)):
        made.register(name.encode(), offer(name, stage=stage, adapters=[ref]))
    made.register(b"tuned", offer("tuned", stage=BACK, adapters=[ref], free=9))
    asked = replace(ASKED, adapter=ref)
    refused(asks(made, S1, asked), Busy)
    assert made.client_says(b"client", Frame.build(Kind.OPEN, asked, session=S1)) == []
    assert waits(made) == {"front": 0, "middle": 0, "back": 1, "tuned": 1}


def test_a_session_that_a_later_stage_could_never_hold_is_refused_and_does_not_wait() -> None:
    made = placing(front=FRONT, middle=MIDDLE)
    made.register(b"back", offer("back", stage=BACK, free=9, total=9))
    refused(asks(made, S1), LimitExceeded)
    assert made.status().waiting == 0


def test_sessions_of_two_clients_wait_each_in_its_own_name_where_a_stage_asks_for_them() -> None:
    made = placing(front=FRONT, middle=MIDDLE, back=BACK)
    here, there = (bytes([letter]) * 16 for letter in b"ab")
    for client, session in ((b"one", here), (b"other", there)):
        assert asks(made, session, peer=client).peer == b"front"
        made.node_says(b"front", accept(session))
    made.register(b"middle", offer("middle", stage=MIDDLE, free=9))
    for number, held in enumerate((here, there)):
        refused(asks(made, bytes([number]) * 16, onward(3, held), b"front's"), Busy)
    (line,) = made.core._state.admission._lines.values()
    assert len({place.client for place in line._places.values()}) == 2


def test_a_node_that_registers_again_leaves_what_is_known_of_its_sessions(chain: Placing) -> None:
    first = read(asks(chain, S2, onward(3, S1), b"front's")).body(Open)
    chain.node_says(b"middle", accept(S2))
    for name, stage, session in (("front", FRONT, S1), ("middle", MIDDLE, S2)):
        chain.register(name.encode(), offer(name, stage=stage, sessions=[session]))
    # It goes on in one place still, and what goes on is for the same client still.
    refused(asks(chain, S3, onward(3, S1), b"front's"), Busy)
    last = read(asks(chain, S3, onward(5, S2), b"middle's")).body(Open)
    assert last.served == first.served


def test_an_adapter_is_held_by_nodes_of_all_blocks_or_by_none() -> None:
    formal = AdapterRef("formal", LLAMA)
    made = placing(middle=MIDDLE, back=BACK)
    made.register(b"front", offer("front", stage=FRONT, adapters=[formal]))
    refused(asks(made, S1, replace(ASKED, adapter=formal)), AdapterUnknown)
    for name, stage in (("middle", MIDDLE), ("back", BACK)):
        made.register(name.encode(), offer(name, stage=stage, adapters=[formal]))
    assert asks(made, S1, replace(ASKED, adapter=formal)).peer == b"front"


@pytest.fixture
def chain() -> Placing:
    """Session `S1` of a client, at the first of three stages."""
    made = placing(front=FRONT, middle=MIDDLE, back=BACK)
    assert asks(made, S1).peer == b"front"
    made.node_says(b"front", accept(S1))
    return made


def test_a_stage_takes_a_session_on_and_the_next_learns_whom_it_is_for(chain: Placing) -> None:
    first = read(asks(chain, S2, onward(3, S1), b"front's")).body(Open)
    chain.node_says(b"middle", accept(S2))
    sent = asks(chain, S3, onward(5, S2), b"middle's")
    assert (sent.side, sent.peer) == (Side.NODES, b"back")
    last = read(sent).body(Open)
    served = {body.served for body in (first, last)}
    assert len(served) == 1
    assert served.isdisjoint({b"somebody else", first.client, last.client})
    # Nobody but the broker is told which session it is.
    assert first.onward is not None
    assert first.onward.session is None


def test_a_session_goes_on_in_one_place_at_a_time(chain: Placing) -> None:
    assert asks(chain, S2, onward(3, S1), b"front's").peer == b"middle"
    refused(asks(chain, S3, onward(3, S1), b"front's"), Busy)
    # Asked again, it is the same; once it is over, there may be another.
    assert asks(chain, S2, onward(3, S1), b"front's").peer == b"middle"
    chain.client_says(b"front's", Frame.closing(RemoteError("over"), S2))
    assert asks(chain, S3, onward(3, S1), b"front's").peer == b"middle"


def test_what_is_no_session_of_a_node_does_not_go_on(chain: Placing) -> None:
    refused(asks(chain, S2, onward(3, S3)), SessionUnknown)
    refused(asks(chain, S2, replace(ASKED, onward=Onward(3))), SessionUnknown)


def test_a_restarted_broker_has_a_stage_ask_again() -> None:
    made = placing(front=FRONT, middle=MIDDLE, back=BACK)
    made.now = 1.0
    refused(asks(made, S2, onward(3, S1)), Busy)
