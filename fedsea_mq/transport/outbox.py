"""What is sent in one breath goes out together, one message for each peer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from fedsea_mq.protocol.bundle import bundled, grouped
from fedsea_mq.protocol.frames import Parts

# Messages to one peer that go without waiting for more: it can work on them meanwhile.
ENOUGH: Final = 16


class Outbox:
    """Holds messages until the event loop has run all that is ready now.

    `transmit(peer, parts, run)` sends one message: `parts` stands for the messages of `run`.
    """

    def __init__(self, transmit: Callable[[bytes, Parts, Sequence[Parts]], None]) -> None:
        self._transmit = transmit
        self._held: dict[bytes, list[Parts]] = {}

    def put(self, peer: bytes, parts: Parts) -> None:
        """Send soon, in order."""
        if not self._held:
            asyncio.get_running_loop().call_soon(self.flush)
        held = self._held.setdefault(peer, [])
        held.append(parts)
        if len(held) == ENOUGH:
            del self._held[peer]
            self._send(peer, held)

    def flush(self) -> None:
        """Send all that is held, now."""
        held, self._held = self._held, {}
        for peer, messages in held.items():
            self._send(peer, messages)

    def _send(self, peer: bytes, messages: Sequence[Parts]) -> None:
        for run in grouped(messages):
            self._transmit(peer, bundled(run), run)
