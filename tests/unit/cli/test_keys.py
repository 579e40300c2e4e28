"""`fedsea keygen` and `fedsea trust`, as an operator types them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsea_mq.cli.__main__ import app
from fedsea_mq.errors import KeyFileError, KeyUntrusted
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.security.keys import read_public
from fedsea_mq.security.seal_keys import NodeKey, TrustedKeys
from fedsea_mq.security.settings import SecuritySection


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fedsea(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    if done.exception is not None:
        raise done.exception
    return done.output


def test_keygen_says_where_the_keys_are_and_never_what_the_secret_is(here: Path) -> None:
    said = fedsea("keygen", "--out", "mine", "--name", "anna")
    secret = (here / "mine" / "anna.key").read_text().partition(":")[2].strip()
    assert secret not in said
    assert str(read_public(here / "mine" / "anna.pub")) in said
    with pytest.raises(KeyFileError, match="is not overwritten"):
        fedsea("keygen", "--out", "mine", "--name", "anna")


def test_keys_are_trusted_listed_and_removed(here: Path) -> None:
    before = os.umask(0o002)  # as many systems have it; others may not write all the same
    try:
        for name in ("anna", "rack"):
            fedsea("keygen", "--name", name)
        fedsea("trust", "add", "client", "keys/anna.pub")
        fedsea("trust", "add", "trunk", "keys/rack.pub", "--name", "rack-3")
    finally:
        os.umask(before)
    listed = json.loads(fedsea("trust", "list", "--json"))
    assert listed == [
        {"party": party, "name": name, "key_id": str(read_public(here / "keys" / f"{file}.pub"))}
        for party, name, file in (("client", "anna", "anna"), ("trunk", "rack-3", "rack"))
    ]
    assert "rack-3" in fedsea("trust", "list")
    fedsea("trust", "remove", "client", "anna")
    assert [one["name"] for one in json.loads(fedsea("trust", "list", "--json"))] == ["rack-3"]


def test_a_secret_cannot_be_handed_out_as_a_public_key(here: Path) -> None:
    fedsea("keygen")
    with pytest.raises(KeyFileError, match="found a secret key"):
        fedsea("trust", "add", "client", "keys/fedsea.key")
    assert not (here / "trust").exists()


def test_who_is_removed_under_one_of_two_names_is_still_trusted_and_that_is_said(
    here: Path,
) -> None:
    fedsea("keygen", "--name", "anna")
    fedsea("trust", "add", "client", "keys/anna.pub")
    copy = here / "trust" / "clients" / "also-anna.pub"
    copy.write_bytes((here / "keys" / "anna.pub").read_bytes())
    copy.chmod(0o644)
    assert "still trusted, as client also-anna" in fedsea("trust", "remove", "client", "anna")


def test_an_operator_signs_a_nodes_key_for_its_role_and_no_other(here: Path) -> None:
    fedsea("keygen", "--operator", "--name", "operator")
    fedsea("keygen", "--name", "rack")
    assert "keys/rack.sig" in fedsea("trust", "sign", "trunk", "keys/rack.pub")
    node = NodeKey.load(SecuritySection(key=here / "keys" / "rack.key"))
    trusted = TrustedKeys.load(SecuritySection(operator_key=here / "keys" / "operator.pub"))
    trusted.check(Role.TRUNK, node.public, node.signature)
    with pytest.raises(KeyUntrusted):
        trusted.check(Role.AGGREGATOR, node.public, node.signature)
    with pytest.raises(KeyFileError, match="is not overwritten"):
        fedsea("keygen", "--operator", "--name", "operator")


def test_an_operators_secret_and_a_partys_do_not_pass_for_each_other(here: Path) -> None:
    fedsea("keygen", "--operator", "--name", "operator")
    fedsea("keygen", "--name", "rack")
    assert (here / "keys" / "operator.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(KeyFileError, match="fedsea-operator-secret"):
        fedsea("trust", "sign", "trunk", "keys/rack.pub", "--key", "keys/rack.key")
    with pytest.raises(KeyFileError, match="fedsea-secret-key"):
        NodeKey.load(SecuritySection(key=here / "keys" / "operator.key"))
    (here / "keys" / "operator.key").chmod(0o644)
    with pytest.raises(KeyFileError, match="0644"):
        fedsea("trust", "sign", "trunk", "keys/rack.pub")
