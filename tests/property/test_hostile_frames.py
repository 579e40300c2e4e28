"""A hundred thousand hostile frames: decoders refuse by type, cores answer with valid frames.

Hypothesis draws the seeds, a plain loop the frames, so that the whole takes seconds.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import msgpack
import pytest

from fedsea_mq.errors import FedSeaError
from fedsea_mq.protocol import messages as m
from fedsea_mq.protocol.compression import pack
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.protocol.messages import Extend, Nothing, Open
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.serving.trunk_sessions import BROKER, DIRECT, Compute, Reply
from tests.property.hostile import Corpus, is_refusal, over_seeds
from tests.unit.broker import placing as broker
from tests.unit.protocol.bodies import BODIES
from tests.unit.serving import trunk

BODY_TYPES: list[type[Any]] = list(dict.fromkeys(type(body) for body in BODIES))
SESSIONS = [trunk.ANNA, trunk.BERT, trunk.CARL, broker.S1, b""]


def every_frame() -> list[Parts]:
    """Valid frames of every kind with every body."""
    return [
        Frame.build(kind, body, session=session, payload=trunk.states(1)).parts()
        for kind in Kind
        for body in BODIES
        for session in SESSIONS
    ]


def working_frames() -> list[Parts]:
    """Frames that a trunk and a broker take: what is a mutation away from them goes deepest."""
    asks = [
        (Kind.OPEN, Open(fingerprint=trunk.FINGERPRINT, max_positions=20, dtype=WireDtype.FP16), 0),
        (Kind.OPEN, Open(trunk.FINGERPRINT, 20, WireDtype.FP16, trace=bytes(range(24))), 0),
        (Kind.OPEN, Open(fingerprint=broker.LLAMA, max_positions=5, dtype=WireDtype.INT8), 0),
        (Kind.EXTEND, Extend(cached=0, count=4, returned=1), 4),
        (Kind.EXTEND, Extend(cached=4, count=1, returned=1), 1),
        (Kind.EXTEND, Extend(cached=0, count=1, returned=1, rewinds=True), 1),
        (Kind.RENEW, Nothing(), 0),
        (Kind.RESULT, m.Result(cached=1, returned=0), 0),
        (Kind.REGISTER, broker.offer("node-a", sessions=SESSIONS[:-1]), 0),
        (Kind.HEARTBEAT, broker.load(), 0),
    ]
    return [
        Frame.build(kind, body, session=session, payload=trunk.states(count)).parts()
        for kind, body, count in asks
        for session in SESSIONS
    ]


WORKING = working_frames()
CORPUS = Corpus(WORKING, every_frame() + WORKING)
# A node's own door takes no sessions, only their states.
EXTENDS = [parts for parts in WORKING if Envelope.decode(parts[0]).kind is Kind.EXTEND]
AT_A_DOOR = Corpus(EXTENDS, CORPUS.every)


def test_decoders_raise_nothing_but_typed_errors() -> None:
    def decoder(_: int) -> Callable[[Parts], bool]:
        def read(parts: Parts) -> bool:
            try:
                frame = Frame.read(parts)
            except FedSeaError:
                return False
            readers = [partial(frame.body, body) for body in BODY_TYPES]
            return sum(decodes(reader) for reader in (frame.refusal, *readers)) > 1

        return read

    assert over_seeds(CORPUS, decoder).frames >= 50_000


def decodes(reader: Callable[[], object]) -> bool:
    try:
        reader()
    except FedSeaError:
        return False
    return True


@pytest.mark.parametrize("origin", [BROKER, DIRECT + b"a client"], ids=["relayed", "direct"])
def test_nothing_comes_out_of_the_trunks_sessions_but_valid_replies(origin: bytes) -> None:
    def sessions(_: int) -> Callable[[Parts], bool]:
        held = trunk.Trunk()
        if origin != BROKER:
            held.open(trunk.ANNA)

        def receive(parts: Parts) -> bool:
            try:
                frame = Frame.read(parts)
            except FedSeaError:
                return False
            held.now += 0.01
            actions = held.sessions.receive(frame, held.now, origin)
            for action in actions:
                if isinstance(action, Compute):
                    actions = held.sessions.computed(action, trunk.states(1))
            replies = [action for action in actions if isinstance(action, Reply)]
            assert all(reply.to == origin for reply in replies)
            assert origin == BROKER or held.sessions.ids == [trunk.ANNA]
            refused = [is_refusal(reply.parts) for reply in replies]
            if origin == BROKER:
                held.sessions.expire(held.now)
            assert 0 <= held.sessions.kv_free <= trunk.TERMS.kv_positions
            assert len(held.sessions) <= trunk.TERMS.max_sessions
            return not all(refused)

        return receive

    corpus = CORPUS if origin == BROKER else AT_A_DOOR
    assert over_seeds(corpus, sessions).frames >= 50_000


@pytest.mark.parametrize("is_client", [True, False], ids=["client", "node"])
def test_nothing_comes_out_of_the_brokers_core_but_valid_frames(is_client: bool) -> None:
    def core(_: int) -> Callable[[Parts], bool]:
        placing = two_nodes()

        def receive(parts: Parts) -> bool:
            placing.now += 0.001
            speak = placing.core.from_client if is_client else placing.core.from_node
            sends = speak(b"hostile" if is_client else b"node-a", parts, placing.now)
            # What is relayed is what came; all else is a frame of the broker's own.
            refused = [s.parts is not parts and is_refusal(list(s.parts)) for s in sends]
            return not all(refused)

        return receive

    assert over_seeds(CORPUS, core).frames >= 50_000


def two_nodes() -> broker.Placing:
    placing = broker.Placing()
    for node in (b"node-a", b"node-b"):
        placing.register(node)
    return placing


def test_an_honest_session_survives_what_others_throw_at_the_broker() -> None:
    placing, session = two_nodes(), b"known to nobody."
    node = placing.opened(b"honest", session)
    for parts in CORPUS.frames(random.Random(7), 2000):
        placing.core.from_client(b"hostile client", parts, placing.now)
    assert placing.extend(b"honest", session).peer == node
    (sent,) = placing.node_says(node, broker.result(session))
    assert sent.peer == b"honest"


HOSTILE_SIZES = {
    "nested arrays": b"\x81\xa1a" + b"\xdc\x40\x00" * 1000,
    "long array": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "long map": b"\xdf\xff\xff\xff\xff",
    "long text": b"\x81\xa1a\xdb\xff\xff\xff\xff",
    "long bytes": b"\x81\xa1a\xc6\xff\xff\xff\xff",
    "extension": b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
    "nested maps": b"\x81\xa1a" * 1000,
    "many maps": msgpack.packb({"a": [{}] * 4000}),
}


@pytest.mark.parametrize("body", BODY_TYPES, ids=lambda body: str(body.__name__))
@pytest.mark.parametrize("hostile", HOSTILE_SIZES.values(), ids=HOSTILE_SIZES)
def test_a_small_frame_never_makes_a_decoder_allocate_much(body: type[Any], hostile: bytes) -> None:
    frame = Frame(Frame.build(Kind.OPEN, Nothing()).envelope, pack(hostile))
    assert len(hostile) < 5000
    tracemalloc.start()
    try:
        with pytest.raises(FedSeaError):
            frame.body(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_hostile_envelopes_never_make_the_decoder_allocate_much() -> None:
    envelopes = [*HOSTILE_SIZES.values(), b"\x98" * 64, b"\xdc\xff\xff" * 21, bytes(1 << 20)]
    tracemalloc.start()
    try:
        for envelope in envelopes:
            with pytest.raises(FedSeaError):
                Frame.read([envelope, b""])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20  # the largest of the envelopes is here itself
