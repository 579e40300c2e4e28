"""The keys of a sealed session, agreed on by the frames that open it: no round trip more.

    client -> node   OPEN or ENLIST, in clear, with the client's ephemeral key
    node -> client   ACCEPT: the node's ephemeral key, its own key and the operator's signature of
                     that, in clear; the terms, sealed with the keys that follow

Both ends compute X25519 (RFC 7748) of the two ephemeral keys, and of the client's ephemeral key
and the node's own; HKDF-SHA256 (RFC 5869) makes of both the two keys of the session. Its salt is a
digest of all that was said: protocol version, session id, the whole request (fingerprint,
positions, dtype, adapter, urgency) and the node's keys. So if anything of it was changed on the
way, the ends have different keys, and the client cannot open the terms. The ephemeral keys are
forgotten: who learns the node's own key later cannot read what was recorded before. The pattern is
NX of the Noise framework, whose first message is in clear: the broker reads it to place the
session.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedsea_mq.errors import RemoteError, SealBroken
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import PROTOCOL_VERSION, Kind
from fedsea_mq.protocol.fields import packed
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Open, SealedAccept, encode_body
from fedsea_mq.protocol.training_messages import Enlist
from fedsea_mq.security.seal_keys import NodeKey, TrustedKeys
from fedsea_mq.security.sealing import KEY_BYTES, Seal

Asked = Open | Enlist
Entropy = Callable[[int], bytes]
_LABEL: Final = b"fedsea_mq sealed session"


def asked_in(frame: Frame) -> Asked:
    """What a frame that opens a session asks for. Raises `MalformedFrame`."""
    return frame.body(Open) if frame.envelope.kind is Kind.OPEN else frame.body(Enlist)


@dataclass(frozen=True, slots=True)
class Hello:
    """What the node says of itself in clear: two public keys, and a signature or nothing."""

    ephemeral: bytes
    node_key: bytes
    signature: bytes

    @classmethod
    def of(cls, said: SealedAccept) -> Hello:
        """The part of an accept body that is in clear."""
        return cls(said.ephemeral, said.node_key, said.signature)


class Offer:
    """The client's side: made before the session is asked for, settled by the node's answer."""

    def __init__(self, session: bytes, asked: Asked, entropy: Entropy) -> None:
        self._secret = X25519PrivateKey.from_private_bytes(entropy(KEY_BYTES))
        self._session = session
        self.asked = replace(asked, seal=self._secret.public_key().public_bytes_raw())

    def settle(self, accept: Frame, trusted: TrustedKeys) -> tuple[Seal, Frame]:
        """The seal that an accept frame begins, and the frame with its terms opened.

        Raises:
            SealBroken: the answer is not sealed, or the request or the answer was changed.
            KeyUntrusted: it is whole, and of a node whose key is not trusted.
        """
        try:
            said = accept.body(SealedAccept)
        except RemoteError:
            raise SealBroken("an ACCEPT frame that is not sealed") from None
        hello = Hello.of(said)
        shared = _exchange(self._secret, hello.ephemeral), _exchange(self._secret, hello.node_key)
        ours, theirs = _keys(shared, _said(self._session, self.asked, hello))
        seal = Seal(sends=ours, receives=theirs)
        opened = seal.open(replace(accept, packed_body=said.terms))
        # Only now: what was changed on the way says nothing of the node.
        trusted.check(_role(self.asked), hello.node_key, hello.signature)
        return seal, opened


class Answer:
    """The node's side of one session."""

    def __init__(self, session: bytes, asked: Asked, key: NodeKey, entropy: Entropy) -> None:
        """Agree with what was asked.

        Raises:
            SealBroken: with a key that agrees with none, or without one.
        """
        if asked.seal is None:
            raise SealBroken("a session that is asked for without a key")
        secret = X25519PrivateKey.from_private_bytes(entropy(KEY_BYTES))
        self._hello = Hello(secret.public_key().public_bytes_raw(), key.public, key.signature)
        shared = _exchange(secret, asked.seal), _exchange(key.secret, asked.seal)
        theirs, ours = _keys(shared, _said(session, asked, self._hello))
        self.seal = Seal(sends=ours, receives=theirs)

    def accept(self, frame: Frame) -> Frame:
        """An accept frame with its terms sealed, and what the client needs to open them."""
        hello, terms = self._hello, self.seal.seal(frame).packed_body
        body = SealedAccept(hello.ephemeral, hello.node_key, hello.signature, terms)
        return Frame(frame.envelope, encode_body(body))


def _exchange(secret: X25519PrivateKey, public: bytes) -> bytes:
    try:
        return secret.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:  # a point of small order: the result would not depend on our secret
        raise SealBroken("a key that no secret can be agreed on with") from None


def _said(session: bytes, asked: Asked, hello: Hello) -> bytes:
    """A digest of all that both ends know the session by."""
    # Whose session it is, for fairness, is for the broker to say: the client does not know it.
    known = asked.as_asked if isinstance(asked, Open) else replace(asked, client=b"")
    role = b"serve" if isinstance(asked, Open) else b"train"
    digest = sha256(_LABEL + bytes([PROTOCOL_VERSION]))
    for field in (role, session, packed(known), hello.ephemeral, hello.node_key, hello.signature):
        digest.update(len(field).to_bytes(4, "big") + field)
    return digest.digest()


def _keys(shared: tuple[bytes, bytes], said: bytes) -> tuple[bytes, bytes]:
    """The keys of what the client sends and of what the node sends."""
    derived = HKDF(SHA256(), 2 * KEY_BYTES, salt=said, info=_LABEL).derive(b"".join(shared))
    return derived[:KEY_BYTES], derived[KEY_BYTES:]


def _role(asked: Asked) -> Role:
    return Role.TRUNK if isinstance(asked, Open) else asked.role
