"""Whose keys are trusted, and as what: a folder for each party, a file for each key.

trust/clients/anna.pub      may open sessions
trust/trainers/clinic-2.pub may take part in training runs, as clinic-2
trust/trunks/rack-3.pub     may register as a trunk node
trust/aggregators/main.pub  may register as an aggregator, and direct trunk nodes in its run
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fedsea_mq.errors import KeyFileError
from fedsea_mq.security.identity import Identity, Party
from fedsea_mq.security.keys import PublicKey, public_line, read_public

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_SUFFIX: Final = ".pub"
_MAX_KEYS: Final = 65_536


@dataclass(frozen=True, slots=True)
class Trusted:
    """One file: a key, under a name of the operator's, as one party."""

    party: Party
    name: str
    key: PublicKey


class TrustFolder:
    """The files. What does not end in `.pub`, or begins with a dot, is not looked at."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, party: Party, name: str, key: PublicKey) -> Path:
        """Trust a key as a party; its file. Written whole, or not at all.

        Raises:
            KeyFileError: the name, or the key under another name, is there already.
        """
        if not _NAME.fullmatch(name):
            raise KeyFileError(f"name {name!r}: expected letters, digits, '_', '.' and '-'")
        for one in self._of(party):
            if name == one.name or key == one.key:
                raise KeyFileError(f"{party.value} {one.name} is key {one.key} already")
        file = self._file(party, name)
        draft = file.with_name(f".{file.name}.new")
        try:
            for folder in (self.path, file.parent):
                folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            draft.write_text(public_line(key))
            draft.chmod(0o644)
            draft.replace(file)
        except OSError as error:
            raise KeyFileError(f"{file}: cannot be written: {error.strerror}") from error
        return file

    def remove(self, party: Party, name: str) -> None:
        """Trust a party's key no more. Raises `KeyFileError` if there is none of this name."""
        try:
            self._file(party, name).unlink()
        except OSError as error:
            raise KeyFileError(f"{party.value} {name}: {error.strerror}") from error

    def all(self) -> list[Trusted]:
        """Every key, by party and name.

        Raises:
            KeyFileError: the folder is missing, a file is no public key, or others may change it.
        """
        if not self.path.is_dir():
            raise KeyFileError(f"{self.path}: no such folder")
        return [one for party in Party for one in self._of(party)]

    def readable(self) -> tuple[list[Trusted], list[str]]:
        """Every key that can be read, and what is wrong with the others, which so are not trusted.

        For a folder that changes while it is in use: one broken file must neither keep a removed
        key trusted nor shut everybody out.
        """
        found, faults = list[Trusted](), list[str]()
        for party in Party:
            try:
                files = list(self._files(party))
            except (KeyFileError, OSError) as error:
                faults.append(str(error))
                continue
            for file in files:
                try:
                    found.append(Trusted(party, file.stem, read_public(file)))
                except KeyFileError as error:
                    faults.append(str(error))
        return found, faults

    def signature(self) -> tuple[tuple[str, int, int, int], ...]:
        """Something that changes whenever a file does."""
        seen: list[tuple[str, int, int, int]] = []
        for party in Party:
            folder = self._folder(party)
            try:
                with os.scandir(folder) as entries:
                    seen.extend(_seen(entry) for entry in entries)
                found = folder.stat()
                seen.append((str(folder), found.st_mtime_ns, found.st_ctime_ns, found.st_ino))
            except OSError:
                continue
        return tuple(sorted(seen))

    def _of(self, party: Party) -> list[Trusted]:
        try:
            files = list(self._files(party))
        except OSError as error:
            raise KeyFileError(f"{self._folder(party)}: {error.strerror}") from error
        return [Trusted(party, file.stem, read_public(file)) for file in files]

    def _files(self, party: Party) -> Iterator[Path]:
        folder = self._folder(party)
        if not folder.exists():
            return
        for checked in (self.path, folder):
            mode = stat.S_IMODE(checked.stat().st_mode)
            if mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise KeyFileError(f"{checked}: mode {mode:04o}, others may add keys: chmod it")
        named = [
            file
            for file in sorted(folder.iterdir())
            if file.suffix == _SUFFIX and not file.name.startswith(".")
        ]
        if len(named) > _MAX_KEYS:
            raise KeyFileError(f"{folder}: {len(named)} keys, at most {_MAX_KEYS}")
        yield from named

    def _file(self, party: Party, name: str) -> Path:
        return self._folder(party) / f"{name}{_SUFFIX}"

    def _folder(self, party: Party) -> Path:
        return self.path / f"{party.value}s"


def _seen(entry: os.DirEntry[str]) -> tuple[str, int, int, int]:
    found = entry.stat()
    return entry.path, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


class AllowList:
    """What each key is trusted to be now, by the key's id."""

    def __init__(self, trusted: Iterable[Trusted]) -> None:
        self._known = _identities(trusted)

    def identity(self, key_id: bytes) -> Identity:
        """Who has the key of this id; one that may do nothing, if it is not trusted."""
        return self._known.get(key_id) or Identity(key_id, frozenset())

    def replace(self, trusted: Iterable[Trusted]) -> frozenset[bytes]:
        """Take a new list; the ids of the keys that are trusted with less than before."""
        before, self._known = self._known, _identities(trusted)
        return frozenset(
            key_id for key_id, was in before.items() if was.parties - self.identity(key_id).parties
        )


def _identities(trusted: Iterable[Trusted]) -> dict[bytes, Identity]:
    found: dict[bytes, Identity] = {}
    for one in trusted:
        known = found.get(one.key.id, Identity(one.key.id, frozenset()))
        found[one.key.id] = replace(
            known, parties=known.parties | {one.party}, names=known.names | {one.name}
        )
    return found
