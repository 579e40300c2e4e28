"""The keys that sessions are sealed to: a node's own, and those that a client trusts.

They are the keys by which parties know each other on their links (`keys`, `trust`). Two files more,
each one line of text, are of an operator who signs nodes' keys, so that clients need not list them:

    NAME.sig       beside a node's NAME.key: the signature of its public key for a role
    operator.pub   the Ed25519 key that it was made with, which clients name in their settings
"""

from __future__ import annotations

import base64
import binascii
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedsea_mq.errors import ConfigError, KeyFileError, KeyUntrusted
from fedsea_mq.protocol.bounded import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Role
from fedsea_mq.security.identity import Party
from fedsea_mq.security.keys import PublicKey, SecretKey, read_secret
from fedsea_mq.security.settings import SecuritySection
from fedsea_mq.security.trust import TrustFolder

OPERATOR: Final = "fedsea-operator-key"
SIGNATURE: Final = "fedsea-node-signature"
_SIGNED: Final = b"fedsea_mq node key of "
_MAX_FILE_BYTES: Final = 1024
_PARTIES: Final = {Role.TRUNK: Party.TRUNK, Role.AGGREGATOR: Party.AGGREGATOR}


@dataclass(frozen=True, slots=True)
class NodeKey:
    """A node's own key; `signature` is the operator's, or empty."""

    own: SecretKey
    signature: bytes = b""

    @property
    def secret(self) -> X25519PrivateKey:
        """What it agrees on keys with."""
        return X25519PrivateKey.from_private_bytes(self.own.raw)

    @property
    def public(self) -> bytes:
        """What clients pin, 32 bytes."""
        return self.own.public.raw

    @classmethod
    def load(cls, security: SecuritySection) -> Self:
        """The key that the settings name.

        Raises:
            KeyFileError: a file is missing, malformed, or may be used by others than its owner.
        """
        assert security.key is not None
        file = security.key.with_suffix(".sig")
        signature = read_line(file, SIGNATURE, SIGNATURE_BYTES) if file.exists() else b""
        return cls(read_secret(security.key), signature)


def sign_node_key(operator: Ed25519PrivateKey, role: Role, public: bytes) -> bytes:
    """The operator's word that a node of this role has this key, 64 bytes."""
    return operator.sign(_signed(role, public))


def _signed(role: Role, public: bytes) -> bytes:
    return _SIGNED + role.value.encode() + b":" + public


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """Public keys of nodes by role, and the operator's key, whose signature is as good."""

    pinned: Mapping[Role, frozenset[bytes]]
    operator: bytes | None = None

    @classmethod
    def load(cls, security: SecuritySection) -> Self:
        """The keys that the settings name.

        Raises:
            ConfigError: they name none.
            KeyFileError: a file is no key, or may be changed by others.
        """
        trusted = [] if security.trust is None else TrustFolder(security.trust).all()
        pinned = {
            role: frozenset(one.key.raw for one in trusted if one.party is party)
            for role, party in _PARTIES.items()
        }
        operator = security.operator_key
        if operator is None and not any(pinned.values()):
            raise ConfigError(
                "security.seal is on: a client needs keys of nodes in security.trust, "
                "or security.operator_key"
            )
        return cls(
            pinned, None if operator is None else read_line(operator, OPERATOR, PUBLIC_KEY_BYTES)
        )

    def check(self, role: Role, public: bytes, signature: bytes) -> None:
        """Raise `KeyUntrusted` unless the key is pinned or signed for a node of this role."""
        is_pinned = public in self.pinned.get(role, ())
        if not is_pinned and not self._is_signed(role, public, signature):
            raise KeyUntrusted(
                f"the {role.value}'s key {PublicKey(public)} is neither in security.trust as one "
                "nor signed as one by the operator"
            )

    def _is_signed(self, role: Role, public: bytes, signature: bytes) -> bool:
        if self.operator is None:
            return False
        try:
            key = Ed25519PublicKey.from_public_bytes(self.operator)
            key.verify(signature, _signed(role, public))
        except (InvalidSignature, ValueError):
            return False
        return True


def read_line(file: Path, kind: str, size: int) -> bytes:
    """The bytes of a public file of an operator. Raises `KeyFileError`."""
    try:
        with file.open("rb") as opened:
            line, mode = opened.read(_MAX_FILE_BYTES), stat.S_IMODE(file.stat().st_mode)
    except OSError as error:
        raise KeyFileError(f"{file}: cannot be read: {error.strerror}") from error
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise KeyFileError(f"{file}: mode {mode:04o}, others may change it: chmod it")
    said, _, text = line.strip().partition(b":")
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error:
        raw = b""
    if said != kind.encode() or len(raw) != size:
        raise KeyFileError(f"{file}: expected {kind}: and {size} bytes in base64")
    return raw


def write_line(file: Path, kind: str, raw: bytes) -> None:
    """Write what `read_line` reads. Raises `OSError`."""
    file.write_text(line_of(kind, raw))


def line_of(kind: str, raw: bytes) -> str:
    """What a file of this kind holds."""
    return f"{kind}:{base64.b64encode(raw).decode()}\n"
