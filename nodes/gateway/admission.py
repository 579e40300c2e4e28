"""How many requests are answered at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nodes.gateway.errors import too_many_requests


class Admission:
    """At most `most` requests at a time; nobody waits in line."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.now = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A request's place. Raises `RequestRefused` if there is none."""
        if self.now >= self.most:
            raise too_many_requests()
        self.now += 1
        try:
            yield
        finally:
            self.now -= 1
