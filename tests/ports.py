"""Ports for tests that must know one before anybody listens there."""

from __future__ import annotations

import random
import socket
from contextlib import closing

# Below those that systems hand out by themselves, so that no test beside takes it meanwhile.
_FIRST, _LAST = 20_000, 32_000


def free_port() -> int:
    """A port of this machine on which nothing listens."""
    while True:
        port = random.randint(_FIRST, _LAST)
        with closing(socket.socket()) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
