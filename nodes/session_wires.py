"""How a process that opens sessions reaches the broker, and trunk nodes past it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from fedsea_mq.errors import RemoteError
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.security.client_seals import ClientSeals
from fedsea_mq.security.keyring import Keyring
from fedsea_mq.serving.background import Background
from fedsea_mq.settings import Settings
from fedsea_mq.transport.broker_links import BrokerLinks
from fedsea_mq.transport.direct_links import DirectLinks
from fedsea_mq.transport.frame_counts import Direction, FrameCounts
from fedsea_mq.transport.link import MakeLink, PeerLink
from fedsea_mq.transport.requests import Patience, Requests


@dataclass(slots=True)
class SessionCounts:
    """Sessions that are open, nodes of theirs that were lost and replaced, and frames."""

    open: int = 0
    failovers: int = 0
    frames: FrameCounts = field(default_factory=lambda: FrameCounts(Direction.UP))


@dataclass(frozen=True, slots=True)
class SessionWires:
    """What sessions are opened and kept going with."""

    requests: Requests
    direct: DirectLinks
    background: Background
    counts: SessionCounts
    # Where session ids come from.
    entropy: Callable[[int], bytes] = secrets.token_bytes


@asynccontextmanager
async def session_wires(
    settings: Settings,
    make_link: MakeLink = PeerLink,
    entropy: Callable[[int], bytes] = secrets.token_bytes,
    counts: SessionCounts | None = None,
) -> AsyncIterator[SessionWires]:
    """Links to the brokers of the settings, as a client with its key and its patience.

    `counts` is what is counted in, if anybody looks at it.

    Raises `KeyFileError`, `PlaintextRefused` or `ConfigError`, as the keys are.
    """
    broker, client = settings.broker, settings.client
    max_part_bytes = broker.max_part_mb << 20
    counts = counts or SessionCounts()
    keyring, seals = Keyring.load(settings.security), ClientSeals.of(settings.security)

    def connect(
        endpoint: str,
        on_frame: Callable[[Frame], None],
        on_refused: Callable[[RemoteError], None],
    ) -> PeerLink:
        return make_link(
            endpoint,
            on_frame,
            max_part_bytes=max_part_bytes,
            keys=keyring.to_broker(endpoint),
            on_refused=on_refused,
            counts=counts.frames,
        )

    # Called once the links are entered, and the requests are there by then.
    def receive(frame: Frame) -> None:
        requests.receive(frame)

    def refused(error: RemoteError) -> None:
        requests.refuse(error)

    silent_s = broker.timeout_ms / 1000
    links = BrokerLinks(broker.all_for_clients, connect, receive, refused, silent_s)
    patience = Patience(client.request_timeout_s, client.give_up_s)
    requests = Requests(links.send, patience, broker.at, seals, links.unanswered)
    direct = DirectLinks(
        make_link,
        requests,
        wanted=client.direct,
        max_part_bytes=max_part_bytes,
        keyring=keyring,
        counts=counts.frames,
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(links)
        await stack.enter_async_context(direct)
        background = await stack.enter_async_context(Background())
        yield SessionWires(requests, direct, background, counts, entropy)
