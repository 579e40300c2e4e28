"""Who may ask: the keys of the API, and what is refused before anything is listened to."""

from __future__ import annotations

import hmac
from hashlib import sha256
from pathlib import Path
from typing import Final, Self

from starlette.datastructures import Headers
from starlette.types import Scope

from fedsea_mq.errors import KeyFileError, PlaintextRefused
from fedsea_mq.gateway_settings import GatewaySettings
from fedsea_mq.security.keyring import is_local
from fedsea_mq.security.keys import read_guarded
from nodes.gateway.errors import RequestRefused

_MAX_FILE_BYTES: Final = 1 << 20
_SHORTEST_KEY: Final = 16
# A server that anybody on this machine may ask. A page whose name was made to point here is not
# of this machine.
_LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Door:
    """Lets in who brings a key; without keys, who names this machine as such.

    `keys` are digests: what is compared tells nothing by the time it takes.
    """

    def __init__(self, keys: frozenset[bytes] | None, names: frozenset[str] | None) -> None:
        self._keys = keys
        self._names = names

    @classmethod
    def of(cls, settings: GatewaySettings) -> Self:
        """As the settings say.

        Raises:
            PlaintextRefused: off loopback, without keys or without TLS.
            KeyFileError: the file of keys cannot be read, may be read by others, or has none.
        """
        local = is_local(f"tcp://{settings.host_in_url}:1")
        if not local:
            _check_off_loopback(settings)
        if settings.api_keys is not None:
            return cls(_digests(settings.api_keys), None)
        return cls(None, _LOCAL_NAMES | {settings.host} if local else None)

    def check(self, scope: Scope, *, needs_key: bool = True) -> None:
        """Raise `RequestRefused` for a request that may not come in."""
        headers = Headers(scope=scope)
        has_key = self._keys is None or self._has_key(headers.get("authorization", ""))
        if needs_key and not has_key:
            raise RequestRefused(401, "a key of this gateway is needed", "invalid_api_key")
        if self._names is not None and _name(headers.get("host", "")) not in self._names:
            raise RequestRefused(403, "not a name of this machine's loopback", "foreign_host")

    def _has_key(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        brought = sha256(key.strip().encode()).digest()
        known = [hmac.compare_digest(brought, one) for one in self._keys or ()]
        return scheme.lower() == "bearer" and any(known)


def _check_off_loopback(settings: GatewaySettings) -> None:
    where = f"gateway.host {settings.host} is not on loopback"
    if settings.api_keys is None and not settings.insecure_no_keys_off_loopback:
        raise PlaintextRefused(f"{where}, and there are no gateway.api_keys: anybody could ask")
    if settings.tls_certificate is None and not settings.insecure_plaintext_off_loopback:
        raise PlaintextRefused(
            f"{where}, and there is no gateway.tls_certificate: prompts would go in clear"
        )


def _digests(file: Path) -> frozenset[bytes]:
    lines = [line.strip() for line in read_guarded(file, _MAX_FILE_BYTES).splitlines()]
    keys = [line for line in lines if line and not line.startswith(b"#")]
    if not keys:
        raise KeyFileError(f"{file}: no key in it")
    if min(map(len, keys)) < _SHORTEST_KEY:
        raise KeyFileError(f"{file}: a key of fewer than {_SHORTEST_KEY} characters")
    return frozenset(sha256(key).digest() for key in keys)


def _name(host: str) -> str:
    """A Host header without its port."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()
