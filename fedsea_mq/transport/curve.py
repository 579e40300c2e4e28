"""Keys on a socket: CURVE (ZeroMQ RFC 26), which encrypts and proves both sides' keys."""

from __future__ import annotations

from typing import Any, Final

import zmq

from fedsea_mq.security.keyring import DoorKeys, LinkKeys

# With a domain that is enforced, a connection that nobody can be asked about is not made.
_DOMAIN: Final = b"fedsea"


def set_keys(socket: zmq.Socket[Any], keys: DoorKeys | LinkKeys) -> None:
    """Let a socket speak by these keys only; before it is bound or connected."""
    socket.set(zmq.CURVE_SECRETKEY, keys.own.raw)
    if isinstance(keys, DoorKeys):
        socket.set(zmq.CURVE_SERVER, 1)
        enforce_asking(socket)
    else:
        socket.set(zmq.CURVE_PUBLICKEY, keys.own.public.raw)
        socket.set(zmq.CURVE_SERVERKEY, keys.peer.raw)


def enforce_asking(socket: zmq.Socket[Any]) -> None:
    """Let nobody connect to a socket whom its context's handler was not asked about."""
    socket.set(zmq.ZAP_DOMAIN, _DOMAIN)
    socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
