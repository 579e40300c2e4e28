"""Keys of sealed sessions from the files of the settings, and the two files of an operator."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsea_mq.errors import ConfigError, KeyFileError, KeyUntrusted
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.security.client_seals import ClientSeals
from fedsea_mq.security.identity import Party
from fedsea_mq.security.node_seals import NodeSeals
from fedsea_mq.security.seal_keys import (
    OPERATOR,
    NodeKey,
    TrustedKeys,
    read_line,
    write_line,
)
from fedsea_mq.security.settings import SecuritySection
from tests.sealing import node_key, pin, sign


def test_a_nodes_key_and_its_signature_are_read_from_their_files(tmp_path: Path) -> None:
    public = node_key(tmp_path)
    own = SecuritySection(seal="on", key=tmp_path / "node.key")
    key = NodeKey.load(own)
    assert (key.public, key.signature) == (public, b"")
    operator = sign(tmp_path, public, Role.TRUNK)
    key, trusted = NodeKey.load(own), TrustedKeys.load(SecuritySection(operator_key=operator))
    trusted.check(Role.TRUNK, public, key.signature)
    with pytest.raises(KeyUntrusted):
        trusted.check(Role.AGGREGATOR, public, key.signature)
    assert key.own.raw.hex() not in repr(key)


def test_sessions_are_sealed_to_keys_that_are_trusted_as_nodes_of_that_role(tmp_path: Path) -> None:
    trunk = node_key(tmp_path)
    trust = pin(tmp_path, "node", Party.TRUNK, Party.CLIENT)
    trusted = TrustedKeys.load(SecuritySection(key=tmp_path / "node.key", trust=trust))
    assert trusted.pinned == {Role.TRUNK: {trunk}, Role.AGGREGATOR: frozenset()}
    assert trusted.operator is None


def test_without_seal_nothing_is_read_and_with_it_what_is_missing_is_named(tmp_path: Path) -> None:
    node_key(tmp_path)
    trust = pin(tmp_path, "node", Party.CLIENT)
    off = SecuritySection(key=tmp_path / "gone.key", trust=trust)
    assert ClientSeals.of(off) is None
    assert NodeSeals.of(off) is None
    on = off.model_copy(update={"seal": "on"})
    with pytest.raises(ConfigError, match=r"security\.trust"):
        ClientSeals.of(on)
    with pytest.raises(KeyFileError, match=r"gone\.key"):
        NodeSeals.of(on)


@pytest.mark.parametrize(
    "text",
    ["", OPERATOR, f"{OPERATOR}:", f"{OPERATOR}:AAAA", f"{OPERATOR}:!!!!", f"x:{'A' * 43}="],
)
def test_what_is_no_operators_key_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "operator.pub"
    file.write_text(text)
    with pytest.raises(KeyFileError, match="expected fedsea-operator-key: and 32 bytes"):
        read_line(file, OPERATOR, 32)


def test_an_operators_key_that_others_may_change_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "operator.pub"
    write_line(file, OPERATOR, bytes(32))
    assert read_line(file, OPERATOR, 32) == bytes(32)
    file.chmod(0o666)
    with pytest.raises(KeyFileError, match="mode 0666"):
        read_line(file, OPERATOR, 32)
    with pytest.raises(KeyFileError, match="cannot be read"):
        read_line(tmp_path / "gone.pub", OPERATOR, 32)
