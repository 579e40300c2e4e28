"""The key of an operator who signs nodes' keys, so that clients need not list them.

NAME.key    Ed25519, mode 0600; a file of its own kind: no party takes it for its own key
NAME.pub    what clients name as `security.operator_key`
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedsea_mq.errors import KeyFileError
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.security.keys import read_public, read_secret_line, write_pair_of_lines
from fedsea_mq.security.seal_keys import OPERATOR, SIGNATURE, line_of, sign_node_key, write_line

_SECRET: Final = "fedsea-operator-secret"  # noqa: S105 - what the file says that it is


def write_operator_pair(folder: Path, name: str) -> None:
    """Write a new pair; nothing is ever overwritten.

    Raises:
        KeyFileError: one of the files is there already, or cannot be written.
    """
    secret = Ed25519PrivateKey.generate()
    public = secret.public_key().public_bytes_raw()
    private = line_of(_SECRET, secret.private_bytes_raw())
    write_pair_of_lines(folder, name, private, line_of(OPERATOR, public))


def sign_file(operator: Path, role: Role, node: Path) -> Path:
    """Sign a node's public key, `NAME.pub`, for its role: the file `NAME.sig` beside it.

    Raises:
        KeyFileError: a file is no key of its kind, or the signature cannot be written.
    """
    secret = Ed25519PrivateKey.from_private_bytes(read_secret_line(operator, _SECRET))
    signature = sign_node_key(secret, role, read_public(node).raw)
    file = node.with_suffix(".sig")
    try:
        write_line(file, SIGNATURE, signature)
    except OSError as error:
        raise KeyFileError(f"{file}: cannot be written: {error.strerror}") from error
    return file
