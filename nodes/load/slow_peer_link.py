"""A client's links, to the broker and to trunk nodes, over an emulated network."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from fedsea_mq.errors import NotRunning
from fedsea_mq.load.plan import Link
from fedsea_mq.load.slow_link import SlowLink
from fedsea_mq.protocol.frames import Frame, Parts, wire_bytes
from fedsea_mq.transport.link import MakeLink, PeerLink


class SlowPeerLink(PeerLink):
    """A link whose frames take the time, both ways, that they would take over `link`."""

    def __init__(
        self,
        link: Link,
        rng: random.Random,
        endpoint: str,
        on_frame: Callable[[Frame], None],
        **terms: Any,
    ) -> None:
        self._up: SlowLink[Parts] = SlowLink(link, rng, self._send_now)
        down: SlowLink[Frame] = SlowLink(link, rng, on_frame)
        super().__init__(
            endpoint, lambda frame: down.send(frame, wire_bytes(frame.parts())), **terms
        )

    def send(self, parts: Parts) -> None:
        """Have a frame leave for the peer, to be there after the link's delay."""
        self._up.send(parts, wire_bytes(parts))

    def _send_now(self, parts: Parts) -> None:
        with suppress(NotRunning):  # it was on its way when the client left
            super().send(parts)


def link_over(link: Link, seed: int) -> MakeLink:
    """What makes a client's links, over that network; each has its whole bandwidth."""
    return PeerLink if link.is_plain else partial(SlowPeerLink, link, random.Random(seed))
