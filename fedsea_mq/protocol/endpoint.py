"""Endpoints that one party may have another connect to: an IPv4 address and a port, nothing else.

A name would have the client ask a name server about whatever a node wrote there, and a path would
have it open sockets of its own machine.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address
from typing import Final

MAX_ENDPOINT_CHARS: Final = len("tcp://255.255.255.255:65535")
_SHAPE: Final = re.compile(r"tcp://([0-9.]{7,15}):([0-9]{1,5})")
_EVERYBODY: Final = IPv4Address("255.255.255.255")


def reachable(endpoint: str) -> str:
    """The endpoint, if it is one that a client can connect to. Raises `ValueError`."""
    match = _SHAPE.fullmatch(endpoint)
    if match is None:
        raise ValueError("expected tcp://ADDRESS:PORT with an IPv4 address")
    address, port = IPv4Address(match[1]), int(match[2])
    if address.is_unspecified or address.is_multicast or address == _EVERYBODY:
        raise ValueError("expected the address of one machine")
    if not 1 <= port <= 65_535:
        raise ValueError("expected a port from 1 to 65535")
    return endpoint
