"""Which socket uses which keys, and that nothing is plain off loopback by accident."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsea_mq.errors import ConfigError, KeyFileError, PlaintextRefused
from fedsea_mq.security.identity import Party
from fedsea_mq.security.keyring import Keyring, is_local
from fedsea_mq.security.keys import SecretKey, read_public, write_pair
from fedsea_mq.security.settings import NO_KEYS, SecuritySection
from fedsea_mq.security.trust import TrustFolder

LOCAL = ["tcp://127.0.0.1:7700", "tcp://127.8.8.8:*", "tcp://localhost:1", "tcp://[::1]:7700"]
OPEN = ["tcp://0.0.0.0:7700", "tcp://*:7700", "tcp://192.0.2.10:7700", "tcp://broker:7700"]
OPEN += ["tcp://[::]:7700", "tcp://localhost.example.org:7700", "tcp://lo:7700"]
OPEN += ["tcp://127.0.0.1.example.org:7700", "tcp://2130706433:7700", "tcp://eth0;127.0.0.1:7700"]
OPEN += ["tcp://127.0.0.1:0;192.0.2.10:7700"]


@pytest.mark.parametrize("endpoint", [*LOCAL, "ipc:///run/fedsea"])
def test_loopback_needs_no_keys(endpoint: str) -> None:
    keyring = Keyring.load(NO_KEYS)
    assert is_local(endpoint)
    assert keyring.door(endpoint, Party.CLIENT) is None
    assert keyring.to_broker(endpoint) is None
    assert keyring.to_node(endpoint, None) is None


@pytest.mark.parametrize("endpoint", OPEN)
def test_plaintext_off_loopback_is_refused_unless_its_danger_is_named(endpoint: str) -> None:
    keyring = Keyring.load(NO_KEYS)
    assert not is_local(endpoint)
    for use in (keyring.door, keyring.to_broker, lambda at: keyring.to_node(at, None)):
        with pytest.raises(PlaintextRefused, match="not on loopback"):
            use(endpoint)
    daring = Keyring.load(SecuritySection(insecure_plaintext_off_loopback=True))
    assert daring.door(endpoint, Party.CLIENT) is None
    assert daring.to_broker(endpoint) is None


def test_with_keys_every_socket_has_them_on_loopback_too(tmp_path: Path) -> None:
    write_pair(tmp_path, "own")
    broker = write_pair(tmp_path, "broker")
    folder = TrustFolder(tmp_path / "trust")
    folder.add(Party.CLIENT, "own", read_public(tmp_path / "own.pub"))
    keyring = Keyring.load(
        SecuritySection(
            key=tmp_path / "own.key", broker_key=tmp_path / "broker.pub", trust=folder.path
        )
    )
    node = SecretKey.generate().public
    for endpoint in (LOCAL[0], OPEN[0]):
        link, door = keyring.to_broker(endpoint), keyring.door(endpoint, Party.TRUNK)
        assert link is not None
        assert door is not None
        assert (link.peer, link.own.public) == (broker, keyring.public)
        assert door.parties == {Party.TRUNK}
        to_node = keyring.to_node(endpoint, node.raw)
        assert to_node is not None
        assert to_node.peer == node
        with pytest.raises(PlaintextRefused, match="one side"):
            keyring.to_node(endpoint, None)
    with pytest.raises(PlaintextRefused, match="one side"):
        Keyring.load(NO_KEYS).to_node(LOCAL[0], node.raw)


def test_half_a_set_of_keys_is_none(tmp_path: Path) -> None:
    write_pair(tmp_path, "own")
    alone = Keyring.load(SecuritySection(key=tmp_path / "own.key"))
    with pytest.raises(ConfigError, match=r"security\.broker_key is not"):
        alone.to_broker(LOCAL[0])
    with pytest.raises(ConfigError, match=r"security\.trust is not"):
        alone.door(LOCAL[0], Party.CLIENT)
    for half in ({"broker_key": tmp_path / "own.pub"}, {"trust": tmp_path}):
        with pytest.raises(ValueError, match=r"need security\.key"):
            SecuritySection(**half)
    with pytest.raises(ValueError, match="nothing is plain"):
        SecuritySection(key=tmp_path / "own.key", insecure_plaintext_off_loopback=True)
    with pytest.raises(KeyFileError, match="no such folder"):
        Keyring.load(SecuritySection(key=tmp_path / "own.key", trust=tmp_path / "none"))
