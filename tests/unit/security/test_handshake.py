"""The handshake in OPEN and ACCEPT: whatever is changed of it, the client does not accept."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedsea_mq.errors import KeyUntrusted, SealBroken
from fedsea_mq.protocol.adapter_ref import AdapterRef
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Accept, Open, SealedAccept, encode_body
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.protocol.training_messages import Enlist
from fedsea_mq.security.handshake import Answer, Asked, Offer
from fedsea_mq.security.keys import PublicKey
from fedsea_mq.security.seal_keys import NodeKey, TrustedKeys, sign_node_key
from fedsea_mq.security.sealing import Seal
from tests.unit.security.sealed import drawn

DIGEST = "ab" * 32
SESSION = b"s" * 16
OPEN = Open(DIGEST, 100, WireDtype.FP16, urgency=2, adapter=AdapterRef("formal", DIGEST))
ENLIST = Enlist(Role.AGGREGATOR, "silos", DIGEST, DIGEST, WireDtype.FP32, "silo-1")
ACCEPT = Accept("trunk-1", 512, 30_000, "tcp://10.0.0.7:7710")
KEY = drawn()


def pinned(key: NodeKey, role: Role = Role.TRUNK) -> TrustedKeys:
    return TrustedKeys({role: frozenset({key.public})})


def accepted(
    asked: Asked, key: NodeKey, session: bytes = SESSION, seq: int = 1
) -> tuple[Answer, Frame]:
    """The node's answer to a request as it arrived."""
    answer = Answer(session, asked, key, os.urandom)
    frame = Frame(Envelope(Kind.ACCEPT, session, seq), encode_body(ACCEPT))
    return answer, answer.accept(frame)


def speaks(client: Seal, answer: Answer) -> None:
    frame = Frame.build(Kind.RENEW, ACCEPT, session=SESSION, seq=3)
    assert answer.seal.open(client.seal(frame)).parts() == frame.parts()
    assert client.open(answer.seal.seal(frame)).parts() == frame.parts()


@pytest.mark.parametrize("asked", [OPEN, ENLIST], ids=["open", "enlist"])
def test_both_ends_have_the_keys_whatever_the_broker_says_of_the_client(asked: Asked) -> None:
    role = Role.TRUNK if isinstance(asked, Open) else Role.AGGREGATOR
    offer = Offer(SESSION, asked, os.urandom)
    answer, accept = accepted(replace(offer.asked, client=b"the broker's word"), KEY)
    seal, opened = offer.settle(accept, pinned(KEY, role))
    assert opened.body(Accept) == ACCEPT
    speaks(seal, answer)
    said = b"".join(accept.parts())
    assert not any(secret in said for secret in (b"trunk-1", b"10.0.0.7"))


CHANGED: list[Callable[[Any], Any]] = [
    lambda asked: replace(asked, fingerprint="cd" * 32),
    lambda asked: replace(asked, max_positions=101),
    lambda asked: replace(asked, dtype=WireDtype.BF16),
    lambda asked: replace(asked, urgency=1),
    lambda asked: replace(asked, adapter=None),
    lambda asked: replace(asked, adapter=AdapterRef("formal", "cd" * 32)),
    lambda asked: replace(asked, seal=drawn().public),
]


@pytest.mark.parametrize("change", CHANGED)
def test_a_request_that_was_changed_on_the_way_is_not_accepted(
    change: Callable[[Any], Any],
) -> None:
    offer = Offer(SESSION, OPEN, os.urandom)
    _, accept = accepted(change(offer.asked), KEY)
    with pytest.raises(SealBroken):
        offer.settle(accept, pinned(KEY))


def test_an_answer_of_another_session_or_to_another_request_is_not_accepted() -> None:
    offer, other = (Offer(SESSION, OPEN, os.urandom) for _ in range(2))
    _, accept = accepted(offer.asked, KEY)
    for wrong in (
        accepted(offer.asked, KEY, session=b"t" * 16)[1],
        accepted(other.asked, KEY)[1],
        replace(accept, envelope=replace(accept.envelope, seq=2)),
        replace(accept, payload=[b"more"]),
        Frame(accept.envelope, encode_body(ACCEPT)),
    ):
        with pytest.raises(SealBroken):
            offer.settle(wrong, pinned(KEY))
    offer.settle(accept, pinned(KEY))


def test_whatever_byte_of_the_answer_is_changed_it_is_not_accepted() -> None:
    operator = Ed25519PrivateKey.generate()
    key = replace(KEY, signature=sign_node_key(operator, Role.TRUNK, KEY.public))
    trusted = TrustedKeys({}, operator.public_key().public_bytes_raw())
    offer = Offer(SESSION, OPEN, os.urandom)
    _, accept = accepted(offer.asked, key)
    said = accept.body(SealedAccept)
    for name in ("ephemeral", "node_key", "signature", "terms"):
        field = getattr(said, name)
        for at in range(len(field)):
            wrong = field[:at] + bytes([field[at] ^ 0x20]) + field[at + 1 :]
            if name in ("ephemeral", "node_key") and at == 31:
                wrong = field[:at] + bytes([field[at] ^ 0x80]) + field[at + 1 :]
            body = replace(said, **{name: wrong})
            with pytest.raises(SealBroken):
                offer.settle(replace(accept, packed_body=encode_body(body)), trusted)
    assert offer.settle(accept, trusted)[1].body(Accept) == ACCEPT


def test_only_keys_that_are_pinned_or_signed_for_that_role_are_accepted() -> None:
    operator, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    vouched = operator.public_key().public_bytes_raw()
    own = sign_node_key(operator, Role.TRUNK, KEY.public)
    others = {
        "unsigned": (KEY, TrustedKeys({}, vouched)),
        "signed by a stranger": (
            replace(KEY, signature=sign_node_key(stranger, Role.TRUNK, KEY.public)),
            TrustedKeys({}, vouched),
        ),
        "signed for another role": (
            replace(KEY, signature=sign_node_key(operator, Role.AGGREGATOR, KEY.public)),
            TrustedKeys({}, vouched),
        ),
        "signature of another key": (replace(drawn(), signature=own), TrustedKeys({}, vouched)),
        "another pinned": (KEY, pinned(drawn())),
        "pinned for another role": (KEY, pinned(KEY, Role.AGGREGATOR)),
        "signed, and no operator trusted": (replace(KEY, signature=own), pinned(drawn())),
    }
    for name, (key, trusted) in others.items():
        offer = Offer(SESSION, OPEN, os.urandom)
        _, accept = accepted(offer.asked, key)
        with pytest.raises(KeyUntrusted, match=str(PublicKey(key.public))):
            offer.settle(accept, trusted)
        assert name
    for key, trusted in (
        (replace(KEY, signature=own), TrustedKeys({}, vouched)),
        (KEY, pinned(KEY)),
    ):
        offer = Offer(SESSION, OPEN, os.urandom)
        answer, accept = accepted(offer.asked, key)
        speaks(offer.settle(accept, trusted)[0], answer)


def test_who_has_the_nodes_public_key_alone_cannot_answer_for_it() -> None:
    offer = Offer(SESSION, OPEN, os.urandom)
    _, accept = accepted(offer.asked, drawn())
    body = replace(accept.body(SealedAccept), node_key=KEY.public)
    with pytest.raises(SealBroken):
        offer.settle(replace(accept, packed_body=encode_body(body)), pinned(KEY))


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)], ids=["zero", "one"])
def test_points_of_small_order_are_refused_on_both_sides(point: bytes) -> None:
    offer = Offer(SESSION, OPEN, os.urandom)
    with pytest.raises(SealBroken):
        Answer(SESSION, replace(offer.asked, seal=point), KEY, os.urandom)
    _, accept = accepted(offer.asked, KEY)
    for name in ("ephemeral", "node_key"):
        body = replace(accept.body(SealedAccept), **{name: point})
        with pytest.raises(SealBroken):
            offer.settle(replace(accept, packed_body=encode_body(body)), pinned(KEY))


def test_the_same_request_to_two_nodes_or_after_a_restart_has_other_keys() -> None:
    offer = Offer(SESSION, OPEN, os.urandom)
    answers = [accepted(offer.asked, key) for key in (KEY, KEY, drawn())]
    frame = Frame.build(Kind.RENEW, ACCEPT, session=SESSION, seq=3)
    seal, _ = offer.settle(answers[0][1], pinned(KEY))
    sealed = seal.seal(frame)
    for answer, _ in answers[1:]:
        with pytest.raises(SealBroken):
            answer.seal.open(sealed)
    assert answers[0][0].seal.open(sealed).parts() == frame.parts()
