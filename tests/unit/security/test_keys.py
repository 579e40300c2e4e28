"""Key files: what is written is read, and what others could read or change is refused."""

from __future__ import annotations

import os
import pickle
import stat
from pathlib import Path

import pytest
import zmq
from zmq.utils import z85

from fedsea_mq.errors import KeyFileError
from fedsea_mq.security.keys import (
    PublicKey,
    SecretKey,
    public_line,
    read_public,
    read_secret,
    write_pair,
)


def text_of(raw: bytes) -> str:
    """A key as its file holds it."""
    return public_line(PublicKey(raw)).partition(":")[2].strip()


def test_a_pair_is_read_as_it_was_written_and_the_secret_is_its_owners(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        public = write_pair(tmp_path / "keys", "anna")
    finally:
        os.umask(before)
    secret = read_secret(tmp_path / "keys" / "anna.key")
    assert read_public(tmp_path / "keys" / "anna.pub") == public == secret.public
    assert stat.S_IMODE((tmp_path / "keys" / "anna.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


def test_the_public_half_is_the_one_that_curve_computes() -> None:
    secret = SecretKey.generate()
    encoded = zmq.curve_public(z85.encode(secret.raw))
    assert z85.decode(encoded) == secret.public.raw


@pytest.mark.parametrize("there", ["anna.key", "anna.pub"])
def test_no_key_is_overwritten(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("precious")
    with pytest.raises(KeyFileError, match=f"{there} is there already"):
        write_pair(tmp_path, "anna")
    assert [file.name for file in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "precious"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_a_secret_that_others_can_touch_is_refused(tmp_path: Path, mode: int) -> None:
    write_pair(tmp_path, "anna")
    (tmp_path / "anna.key").chmod(mode)
    with pytest.raises(KeyFileError, match=f"mode {mode:04o}, expected 0600"):
        read_secret(tmp_path / "anna.key")


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_public_key_that_others_can_change_is_refused(tmp_path: Path, mode: int) -> None:
    write_pair(tmp_path, "anna")
    (tmp_path / "anna.pub").chmod(mode)
    with pytest.raises(KeyFileError, match=f"mode {mode:04o}, expected 0644"):
        read_public(tmp_path / "anna.pub")


def test_a_secret_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    write_pair(tmp_path, "anna")
    os.chown(tmp_path / "anna.key", 12345, -1)
    with pytest.raises(KeyFileError, match="belongs to another user"):
        read_secret(tmp_path / "anna.key")


def test_one_kind_of_file_does_not_pass_for_the_other(tmp_path: Path) -> None:
    write_pair(tmp_path, "anna")
    with pytest.raises(KeyFileError, match="found a secret key") as caught:
        read_public(tmp_path / "anna.key")
    assert text_of(read_secret(tmp_path / "anna.key").raw) not in str(caught.value)
    (tmp_path / "anna.pub").chmod(0o600)
    with pytest.raises(KeyFileError, match="found a public key"):
        read_secret(tmp_path / "anna.pub")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "found something else"),
        ("fedsea-secret-key", "a key of 0 bytes"),
        ("fedsea-secret-key:!!", "not base64"),
        ("fedsea-secret-key:TOPSECRET===", "not base64"),
        ("fedsea-secret-key:VE9QU0VDUkVU", "a key of 9 bytes, expected 32"),
        ("x" * 100_000, "found something else"),
    ],
)
def test_what_is_no_key_is_told_without_its_content(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "anna.key"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(KeyFileError, match=said) as caught:
        read_secret(file)
    assert "TOPSECRET" not in str(caught.value)
    assert "VE9QU0VDUkVU" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_missing_file_a_folder_and_a_pipe_are_told(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file"):
        read_secret(tmp_path / "none.key")
    with pytest.raises(KeyFileError):
        read_secret(tmp_path)
    os.mkfifo(tmp_path / "pipe.key", 0o600)
    with pytest.raises(KeyFileError, match="not a file"):
        read_secret(tmp_path / "pipe.key")


def test_a_secret_shows_itself_to_nobody() -> None:
    secret = SecretKey.generate()
    shown = f"{secret} {secret!r} {[secret]}"
    for form in (text_of(secret.raw), secret.raw.hex(), repr(secret.raw)):
        assert form not in shown
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(secret)
