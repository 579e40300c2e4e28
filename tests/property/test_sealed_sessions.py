"""Whatever clients, nodes and the network do: no nonce twice, and nothing taken that is forged."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsea_mq.errors import RemoteError, SealBroken
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.protocol.messages import Nothing, Result
from fedsea_mq.security import sealing
from tests.property.mutations import mutated
from tests.unit.security.sealed import OPEN, SealedClient, SealedTrunk, drawn
from tests.unit.serving.trunk import ANNA, BERT


class Watched:
    """The cipher, and every key and nonce that it ever sealed under."""

    used: set[tuple[bytes, bytes]]

    def __init__(self, key: bytes) -> None:
        self._key, self._cipher = key, ChaCha20Poly1305(key)

    def encrypt(self, nonce: bytes, data: bytes, about: bytes) -> bytes:
        assert (self._key, nonce) not in self.used
        self.used.add((self._key, nonce))
        return self._cipher.encrypt(nonce, data, about)

    def decrypt(self, nonce: bytes, data: bytes, about: bytes) -> bytes:
        return self._cipher.decrypt(nonce, data, about)


class World:
    """Two sessions of clients that may restart, and a trunk that may; the network keeps all."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._key = drawn()
        self.client, self.trunk = SealedClient.of(self._key), SealedTrunk(self._key)
        self._sent: list[Parts] = []
        self._cached = {ANNA: 0, BERT: 0}
        self.results = 0

    def _deliver(self, parts: Parts) -> None:
        self._sent.append(parts)
        for reply in self.trunk.receive(parts):
            if self._rng.random() < 0.2:
                continue  # lost
            for _ in range(self._rng.choice((1, 1, 2))):
                self._take(reply)

    def _take(self, reply: Parts) -> None:
        try:
            frame = self.client.answer(reply)
            refusal = frame.refusal()
        except RemoteError:
            return
        if refusal is None and frame.envelope.kind is Kind.RESULT:
            self._cached[frame.envelope.session] = frame.body(Result).cached
            self.results += 1

    def _close(self, session: bytes) -> None:
        self.trunk.receive(Frame.build(Kind.CLOSE, Nothing(), session=session).parts())

    def _ask(self, build: Any, *arguments: Any, **named: Any) -> None:
        try:
            self._deliver(build(*arguments, **named))
        except RemoteError:
            return  # the client knows that the session is not open

    def act(self, what: str) -> None:
        session, mark = self._rng.choice((ANNA, BERT)), self._rng.randrange(256)
        match what:
            case "open":
                self._close(session)
                self._cached[session] = 0
                asked = replace(OPEN, max_positions=self._rng.choice((20, 40)))
                self._ask(self.client.request, Kind.OPEN, asked, session)
            case "extend":
                self._ask(self.client.extend, self._cached[session], 1, mark, session)
            case "rewind":
                at = self._rng.randint(0, self._cached[session])
                self._ask(self.client.extend, at, 2, mark, session, rewinds=True)
            case "renew":
                self._ask(self.client.renew, session)
            case "copy" if self._sent:
                self._deliver(self._rng.choice(self._sent))
            case "change" if self._sent:
                frame = mutated(self._rng, self._rng.choice(self._sent), self._sent)
                if len(frame) > 1:
                    for reply in self.trunk.receive(frame):
                        self._take(reply)
            case "close":
                self._close(session)
            case "expire":
                self.trunk.now += 20
                for reply in self.trunk.expire():
                    self._take(reply)
            case "client restarts":
                self.client = SealedClient.of(self._key)
            case "trunk restarts":
                self.trunk = SealedTrunk(self._key)


RARE = ("close", "expire", "client restarts", "trunk restarts")
ACTIONS = (*("extend", "rewind", "copy") * 5, *("open", "renew", "change") * 2, *RARE)
results = 0


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def _in_any_world(seed: int) -> None:
    global results  # noqa: PLW0603 - over all examples
    rng = random.Random(seed)
    world = World(rng)
    for _ in range(200):
        world.act(rng.choice(ACTIONS))
    assert len(world.trunk.seals) == len(world.trunk.sessions)
    results += world.results


def test_no_nonce_is_used_twice_and_a_node_has_keys_for_the_sessions_that_it_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Watched, "used", set(), raising=False)
    monkeypatch.setattr(sealing, "ChaCha20Poly1305", Watched)
    _in_any_world()
    # They were worlds in which sessions were served, too.
    assert results > 200
    assert len(Watched.used) > 3000


def is_close(parts: Parts) -> bool:
    try:
        return Frame.read(parts).envelope.kind is Kind.CLOSE
    except RemoteError:
        return False


def test_an_honest_session_stands_where_it_stood_whatever_others_throw_at_its_node() -> None:
    rng, key = random.Random(11), drawn()
    client, trunk = SealedClient.of(key), SealedTrunk(key)
    client.open(trunk, BERT, replace(OPEN, max_positions=20))
    berts = client.renew(BERT)
    client.open(trunk, ANNA, replace(OPEN, max_positions=40))
    pool = [client.extend(0, 4), client.extend(0, 1, rewinds=True), client.renew(), berts]
    pool += [client.request(Kind.OPEN, OPEN, b"c" * 16), pool[0][:2], pool[1][:3]]
    refused = 0
    for _ in range(20_000):
        frame = mutated(rng, rng.choice(pool), pool)
        if len(frame) < 2 or frame in pool or is_close(frame):
            continue  # what is as it was is of an honest client, and anybody can end a session
        for reply in trunk.receive(frame):
            refused += Frame.read(reply).envelope.kind in (Kind.ERROR, Kind.BUSY)
    assert trunk.cached(ANNA) == trunk.cached(BERT) == 0
    assert not trunk.computed
    (reply,) = trunk.receive(pool[0])
    assert client.answer(reply).body(Result) == Result(4, 1)
    assert refused > 5000


def test_an_honest_client_takes_nothing_that_its_node_did_not_seal() -> None:
    rng, key = random.Random(12), drawn()
    client, trunk = SealedClient.of(key), SealedTrunk(key)
    client.open(trunk)
    asked = client.extend(0, 4)
    (reply,), (again,) = trunk.receive(asked), trunk.receive(asked)
    pool = [reply, again, client.extend(4, 1), client.renew()]
    refused = 0
    for _ in range(20_000):
        frame = mutated(rng, rng.choice(pool), pool)
        try:
            read = Frame.read(frame)
        except RemoteError:
            continue
        if read.envelope.session != ANNA or frame in (reply, again):
            continue
        with pytest.raises(SealBroken):
            client.seals.open(read)
        refused += 1
    assert client.answer(again).body(Result) == Result(4, 1)
    assert refused > 5000
