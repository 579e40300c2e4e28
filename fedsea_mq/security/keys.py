"""Keys and their files.

A key is an X25519 key, which is what ZeroMQ's CURVE uses. Each lies in a file of its own, one line
of text: what it is, a colon, and the 32 bytes in base64. The two kinds do not pass for each other.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedsea_mq.errors import KeyFileError

KEY_BYTES: Final = 32
ID_BYTES: Final = 16
_PUBLIC: Final = "fedsea-public-key"
_SECRET: Final = "fedsea-secret-key"  # noqa: S105 - what the file says that it is
_MAX_FILE_BYTES: Final = 1024
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class PublicKey:
    """What others know a party by. `raw` is 32 bytes."""

    raw: bytes

    @property
    def id(self) -> bytes:
        """16 bytes that stand for the key where it is named: in messages, lists and logs."""
        return blake2b(self.raw, digest_size=ID_BYTES, person=b"fedsea key id").digest()

    def __str__(self) -> str:
        """The id, for people."""
        return self.id.hex()


class SecretKey:
    """What a party proves itself by. It shows itself only to who asks for `raw`."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise ValueError(f"a key of {len(raw)} bytes, expected {KEY_BYTES}")
        self._raw = raw

    @classmethod
    def generate(cls) -> Self:
        """A new one, from the operating system's randomness."""
        return cls(X25519PrivateKey.generate().private_bytes_raw())

    @property
    def raw(self) -> bytes:
        """The 32 bytes."""
        return self._raw

    @property
    def public(self) -> PublicKey:
        """Its other half."""
        pair = X25519PrivateKey.from_private_bytes(self._raw)
        return PublicKey(pair.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        """Its public half's id."""
        return f"SecretKey(of {self.public})"

    def __reduce__(self) -> Any:
        """Refused: a copy would be written somewhere."""
        raise TypeError("a secret key is not pickled")


def write_pair(folder: Path, name: str) -> PublicKey:
    """Write a new pair, `name.key` with mode 0600 and `name.pub`; nothing is ever overwritten.

    Raises:
        KeyFileError: one of them is there already, or cannot be written.
    """
    secret = SecretKey.generate()
    write_pair_of_lines(folder, name, _line(_SECRET, secret.raw), public_line(secret.public))
    return secret.public


def write_pair_of_lines(folder: Path, name: str, secret: str, public: str) -> None:
    """Write `name.key`, with mode 0600, and `name.pub`; as `write_pair`, of any kind of key.

    Raises:
        KeyFileError: one of them is there already, or cannot be written.
    """
    files = folder / f"{name}.pub", folder / f"{name}.key"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in files:
            if file.exists():
                raise KeyFileError(f"{file} is there already, and is not overwritten")
        _write_new(files[1], secret, 0o600)
        _write_new(files[0], public, 0o644)
    except OSError as error:
        raise KeyFileError(f"{folder}: cannot write keys: {error.strerror}") from error


def public_line(key: PublicKey) -> str:
    """What a file of the key holds."""
    return _line(_PUBLIC, key.raw)


def read_public(file: Path) -> PublicKey:
    """A public key. Raises `KeyFileError` if there is none, or if others may change it."""
    return PublicKey(_read(file, _PUBLIC, _OTHERS_WRITE))


def read_secret(file: Path) -> SecretKey:
    """A secret key.

    Raises:
        KeyFileError: there is none, or others than the owner may read or change the file.
    """
    return SecretKey(_read(file, _SECRET, _OTHERS))


def _line(kind: str, raw: bytes) -> str:
    return f"{kind}:{base64.b64encode(raw).decode()}\n"


def _write_new(file: Path, text: str, mode: int) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(text)
        os.fsync(descriptor)


def read_secret_line(file: Path, kind: str) -> bytes:
    """The 32 bytes of another kind of secret; as `read_secret`."""
    return _read(file, kind, _OTHERS)


def read_guarded(file: Path, most: int) -> bytes:
    """What a file holds, up to `most` bytes.

    Raises:
        KeyFileError: there is none, or others than the owner may read or change the file.
    """
    return _content(file, _OTHERS, most)


def _read(file: Path, kind: str, forbidden: int) -> bytes:
    return _parse(file, _content(file, forbidden, _MAX_FILE_BYTES + 1), kind)


def _content(file: Path, forbidden: int, most: int) -> bytes:
    try:
        # Looked at and read through one descriptor, so that they are one file. A pipe has no end.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as opened:
            _check(file, os.fstat(descriptor), forbidden)
            return opened.read(most)
    except OSError as error:
        raise KeyFileError(f"{file}: cannot be read: {error.strerror}") from error


def _check(file: Path, found: os.stat_result, forbidden: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise KeyFileError(f"{file}: not a file")
    if found.st_uid not in (0, os.geteuid()):
        raise KeyFileError(f"{file}: belongs to another user, {found.st_uid}")
    mode = stat.S_IMODE(found.st_mode)
    if mode & forbidden:
        raise KeyFileError(f"{file}: mode {mode:04o}, expected {mode & ~forbidden:04o}: chmod it")


def _parse(file: Path, line: bytes, kind: str) -> bytes:
    """The key of a file's line. What the line holds is in no error: it may be a secret."""
    said, _, text = line.strip().partition(b":")
    if said != kind.encode():
        other = {_PUBLIC.encode(): "a public key", _SECRET.encode(): "a secret key"}.get(said)
        raise KeyFileError(f"{file}: expected {kind}:..., found {other or 'something else'}")
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise KeyFileError(f"{file}: the key is not base64") from None
    if len(raw) != KEY_BYTES:
        raise KeyFileError(f"{file}: a key of {len(raw)} bytes, expected {KEY_BYTES}")
    return raw
