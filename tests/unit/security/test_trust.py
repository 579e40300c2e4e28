"""Allow-lists: files in, identities out; what cannot be read is trusted by nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsea_mq.errors import KeyFileError, NotTrusted
from fedsea_mq.security.identity import ANYBODY, Party
from fedsea_mq.security.keys import PublicKey, SecretKey
from fedsea_mq.security.trust import AllowList, TrustFolder


def fresh() -> PublicKey:
    return SecretKey.generate().public


@pytest.fixture
def folder(tmp_path: Path) -> TrustFolder:
    return TrustFolder(tmp_path / "trust")


def test_what_is_added_is_listed_and_what_is_removed_is_not(folder: TrustFolder) -> None:
    anna, rack = fresh(), fresh()
    file = folder.add(Party.CLIENT, "anna", anna)
    folder.add(Party.TRUNK, "rack-3", rack)
    assert file == folder.path / "clients" / "anna.pub"
    found = {(one.party, one.name): one.key for one in folder.all()}
    assert found == {(Party.CLIENT, "anna"): anna, (Party.TRUNK, "rack-3"): rack}
    folder.remove(Party.CLIENT, "anna")
    assert [one.name for one in folder.all()] == ["rack-3"]
    with pytest.raises(KeyFileError, match="client anna"):
        folder.remove(Party.CLIENT, "anna")


def test_a_name_stands_for_one_key_and_a_key_has_one_name(folder: TrustFolder) -> None:
    anna = fresh()
    folder.add(Party.CLIENT, "anna", anna)
    for name, key in (("anna", fresh()), ("bert", anna)):
        with pytest.raises(KeyFileError, match="client anna is key"):
            folder.add(Party.CLIENT, name, key)
    folder.add(Party.TRAINER, "anna", anna)  # another party
    for name in ("", "../anna", ".anna", "a b", "a" * 65):
        with pytest.raises(KeyFileError, match="expected letters"):
            folder.add(Party.CLIENT, name, fresh())


def test_a_broken_file_is_an_error_at_the_start_and_trusted_by_nobody_later(
    folder: TrustFolder,
) -> None:
    anna = fresh()
    folder.add(Party.CLIENT, "anna", anna)
    (folder.path / "clients" / "bert.pub").write_text("not a key")
    with pytest.raises(KeyFileError, match=r"bert\.pub"):
        folder.all()
    trusted, faults = folder.readable()
    assert [(one.name, one.key) for one in trusted] == [("anna", anna)]
    assert len(faults) == 1
    assert "bert.pub" in faults[0]


@pytest.mark.parametrize("of", ["", "clients"])
def test_a_folder_that_others_can_write_into_is_trusted_by_nobody(
    folder: TrustFolder, of: str
) -> None:
    folder.add(Party.CLIENT, "anna", fresh())
    (folder.path / of).chmod(0o777)
    with pytest.raises(KeyFileError, match="others may add keys"):
        folder.all()
    assert folder.readable()[0] == []


def test_a_folder_that_is_not_there_is_an_error_at_the_start(folder: TrustFolder) -> None:
    with pytest.raises(KeyFileError, match="no such folder"):
        folder.all()
    assert folder.readable() == ([], [])


def test_every_change_of_a_file_changes_the_signature(folder: TrustFolder) -> None:
    seen = [folder.signature()]
    file = folder.add(Party.CLIENT, "anna", fresh())
    seen.append(folder.signature())
    folder.add(Party.CLIENT, "bert", fresh())
    seen.append(folder.signature())
    file.chmod(0o666)
    seen.append(folder.signature())
    folder.remove(Party.CLIENT, "bert")
    seen.append(folder.signature())
    assert len(set(seen)) == len(seen)


def test_a_key_is_what_its_files_say_and_nothing_once_they_are_gone(folder: TrustFolder) -> None:
    both, one = fresh(), fresh()
    folder.add(Party.CLIENT, "both", both)
    folder.add(Party.TRUNK, "both", both)
    folder.add(Party.CLIENT, "one", one)
    known = AllowList(folder.all())
    assert known.identity(both.id).parties == {Party.CLIENT, Party.TRUNK}
    known.identity(one.id).must_be(Party.TRUNK, Party.CLIENT)
    with pytest.raises(NotTrusted, match="trunk"):
        known.identity(one.id).must_be(Party.TRUNK)

    folder.remove(Party.TRUNK, "both")
    folder.remove(Party.CLIENT, "one")
    folder.add(Party.CLIENT, "new", fresh())
    assert known.replace(folder.all()) == {both.id, one.id}
    assert known.identity(both.id).parties == {Party.CLIENT}
    assert known.identity(one.id).parties == frozenset()
    assert known.replace(folder.all()) == frozenset()


def test_where_there_are_no_keys_everybody_may_be_anything() -> None:
    for party in Party:
        ANYBODY.must_be(party)
