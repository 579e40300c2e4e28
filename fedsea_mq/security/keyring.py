"""The keys of one process, and which of its sockets uses what. No way round them off loopback."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Self

from fedsea_mq.errors import ConfigError, PlaintextRefused
from fedsea_mq.security.identity import Party
from fedsea_mq.security.keys import PublicKey, SecretKey, read_public, read_secret
from fedsea_mq.security.settings import SecuritySection
from fedsea_mq.security.trust import AllowList, TrustFolder

_HOST: Final = re.compile(r"tcp://(?:\[([^\]]+)\]|([^:;]+)):(?:[0-9]+|\*)")


@dataclass(frozen=True, slots=True)
class LinkKeys:
    """What a socket that connects has: its own key, and that of whom it connects to."""

    own: SecretKey
    peer: PublicKey


@dataclass(frozen=True, slots=True)
class DoorKeys:
    """What a socket that listens has: its own key, who is trusted, and as what here."""

    own: SecretKey
    allow_list: AllowList
    parties: frozenset[Party]


class Keyring:
    """What the settings name, read from its files; nothing, on loopback, where they name none."""

    def __init__(
        self,
        security: SecuritySection,
        own: SecretKey | None,
        broker: PublicKey | None,
        allow_list: AllowList | None,
    ) -> None:
        self._security = security
        self._own = own
        self._broker = broker
        self._allow_list = allow_list

    @classmethod
    def load(cls, security: SecuritySection) -> Self:
        """Read the files. Raises `KeyFileError`."""
        return cls(
            security,
            None if security.key is None else read_secret(security.key),
            None if security.broker_key is None else read_public(security.broker_key),
            None if security.trust is None else AllowList(TrustFolder(security.trust).all()),
        )

    @property
    def public(self) -> PublicKey | None:
        """What this process is known by, if by anything."""
        return None if self._own is None else self._own.public

    @property
    def trust(self) -> tuple[TrustFolder, AllowList] | None:
        """Who may connect to this process, and where that is written."""
        if self._security.trust is None or self._allow_list is None:
            return None
        return TrustFolder(self._security.trust), self._allow_list

    def to_broker(self, endpoint: str) -> LinkKeys | None:
        """For a link to the broker.

        Raises:
            PlaintextRefused: there is no key, and the endpoint is not on loopback.
            ConfigError: there is a key, but not the broker's.
        """
        if self._own is None:
            self._check_plain(endpoint)
            return None
        if self._broker is None:
            raise ConfigError("security.key is set, and security.broker_key is not")
        return LinkKeys(self._own, self._broker)

    def to_node(self, endpoint: str, key: bytes | None) -> LinkKeys | None:
        """For a link to a trunk node, with the key that it offered.

        Raises:
            PlaintextRefused: one side has no key, and the endpoint is not on loopback or the other
                has one.
        """
        if self._own is None and key is None:
            self._check_plain(endpoint)
            return None
        if self._own is None or key is None:
            raise PlaintextRefused(f"{endpoint}: one side has a key, and the other has none")
        return LinkKeys(self._own, PublicKey(key))

    def door(self, endpoint: str, *parties: Party) -> DoorKeys | None:
        """For a socket that listens, to these parties.

        Raises:
            PlaintextRefused: there is no key, and the endpoint is not on loopback.
            ConfigError: there is a key, but nobody is trusted.
        """
        if self._own is None:
            self._check_plain(endpoint)
            return None
        if self._allow_list is None:
            raise ConfigError("security.key is set, and security.trust is not: nobody could come")
        return DoorKeys(self._own, self._allow_list, frozenset(parties))

    def _check_plain(self, endpoint: str) -> None:
        if not is_local(endpoint) and not self._security.insecure_plaintext_off_loopback:
            raise PlaintextRefused(
                f"{endpoint} is not on loopback, and there is no security.key: nothing would be "
                "encrypted and nobody known; see docs/how-to/several-machines.md"
            )


def is_local(endpoint: str) -> bool:
    """Whether nobody on another machine can reach an endpoint, as far as its text says."""
    if endpoint.startswith("ipc://"):
        return True
    match = _HOST.fullmatch(endpoint)
    if match is None:
        return False
    host = match[1] or match[2]
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
