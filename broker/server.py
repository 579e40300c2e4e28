"""The broker's sockets and clock around its core."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Self

import zmq

from broker.core import BrokerCore
from broker.limits import Limits
from broker.messages import NODE_PARTIES, OPENERS, Send, Side
from broker.metrics import readings
from broker.state import BrokerTerms
from broker.watch import SessionWatch
from fedsea_mq.errors import FedSeaError, NotRunning, PeerUnreachable, SendQueueFull
from fedsea_mq.log import get_logger
from fedsea_mq.protocol.bundle import unbundled_from
from fedsea_mq.security.keyring import DoorKeys, Keyring
from fedsea_mq.security.settings import NO_KEYS, SecuritySection
from fedsea_mq.security.trust_watch import TrustWatch
from fedsea_mq.settings import BrokerSettings
from fedsea_mq.telemetry.measures import Reading
from fedsea_mq.telemetry.node_metrics import NodeMetrics
from fedsea_mq.telemetry.settings import NO_TELEMETRY, TelemetrySection
from fedsea_mq.telemetry.spans import spans_of
from fedsea_mq.transport.connection_limit import ConnectionLimit
from fedsea_mq.transport.doorkeeper import Doorkeeper
from fedsea_mq.transport.loop_socket import Context, LoopSocket
from fedsea_mq.transport.outbox import Outbox

_log = get_logger(__name__)


class Broker:
    """A broker on the running event loop; it serves while inside `async with`.

    `clients` and `nodes` are the endpoints it listens on, with the ports that `tcp://host:*` got.
    Its sockets are of `context`, or of contexts of their own. `metrics` is what it shows.

    Raises `KeyFileError`, `PlaintextRefused` or `ConfigError`, as the keys of `security` are.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        security: SecuritySection = NO_KEYS,
        context: Context | None = None,
        telemetry: TelemetrySection = NO_TELEMETRY,
    ) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self.metrics = NodeMetrics("broker", "broker")
        self.metrics.read(self._readings)
        self._context = context
        self._terms = BrokerTerms(settings.heartbeat_ms, settings.timeout_ms, _limits(settings))
        self._core: BrokerCore | None = None
        keyring = Keyring.load(security)
        self._trust = keyring.trust
        doors = {
            Side.CLIENTS: keyring.door(settings.clients, *OPENERS),
            Side.NODES: keyring.door(settings.nodes, *NODE_PARTIES),
        }
        self._sockets = {
            Side.CLIENTS: self._socket(Side.CLIENTS, self._from_client, doors[Side.CLIENTS]),
            Side.NODES: self._socket(Side.NODES, self._from_node, doors[Side.NODES]),
        }
        most = settings.max_connections
        self._counts = {side: ConnectionLimit(self._sockets[side], most) for side in Side}
        self._doorkeepers = {
            side: Doorkeeper(self._sockets[side], doors[side], self._counts[side]) for side in Side
        }
        self._outboxes = {side: Outbox(partial(self._transmit, side)) for side in Side}
        self._ticker: asyncio.Task[None] | None = None
        self._stack = AsyncExitStack()
        self.clients = settings.clients
        self.nodes = settings.nodes

    def _socket(
        self, side: Side, on_message: Callable[[list[Any]], None], keys: DoorKeys | None
    ) -> LoopSocket:
        return LoopSocket(
            zmq.ROUTER,
            on_message,
            max_part_bytes=self._settings.max_part_mb << 20,
            max_queued=self._settings.max_queued_frames,
            copy=False,
            split=partial(unbundled_from, refuse=partial(self._refuse, side)),
            keys=keys,
            context=self._context,
        )

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            spans = await stack.enter_async_context(spans_of(self._telemetry, "broker", "broker"))
            watch = SessionWatch(spans)
            self._core = BrokerCore(self._terms, _now(), secrets.token_bytes(32), watch)
            for side in Side:
                await stack.enter_async_context(self._sockets[side])
                await stack.enter_async_context(self._counts[side])
                await stack.enter_async_context(self._doorkeepers[side])
                stack.callback(self._outboxes[side].flush)
            self.clients = self._sockets[Side.CLIENTS].bind(self._settings.clients)
            self.nodes = self._sockets[Side.NODES].bind(self._settings.nodes)
            if self._trust is not None:
                await stack.enter_async_context(TrustWatch(*self._trust, self._revoked))
            self._stack = stack.pop_all()
        self._ticker = asyncio.create_task(self._tick(), name="fedsea broker clock")
        _log.info(
            "broker ready", clients=self.clients, nodes=self.nodes, keys=self._trust is not None
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._ticker is not None
        self._ticker.cancel()
        await asyncio.wait([self._ticker])
        await self._stack.__aexit__(None, None, None)

    def _revoked(self, keys: frozenset[bytes]) -> None:
        self._deliver(self._running.revoked(keys))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._settings.heartbeat_ms / 2000)
            self._deliver(self._running.tick(_now()))

    def _readings(self) -> Iterable[Reading]:
        return [] if self._core is None else readings(self._core)

    @property
    def _running(self) -> BrokerCore:
        if self._core is None:
            raise NotRunning("the broker is not running")
        return self._core

    def _from_client(self, message: list[Any]) -> None:
        peer, *parts = message
        who = self._doorkeepers[Side.CLIENTS].who(peer)
        self._deliver(self._running.from_client(bytes(peer), parts, _now(), who))

    def _from_node(self, message: list[Any]) -> None:
        peer, *parts = message
        who = self._doorkeepers[Side.NODES].who(peer)
        self._deliver(self._running.from_node(bytes(peer), parts, _now(), who))

    def _refuse(self, side: Side, peer: bytes, error: FedSeaError) -> None:
        self._deliver([self._running.refused(side, peer, error)])

    def _deliver(self, sends: Iterable[Send]) -> None:
        for send in sends:
            self._outboxes[send.side].put(send.peer, list(send.parts))

    def _transmit(self, side: Side, peer: bytes, parts: list[Any], _: object) -> None:
        try:
            self._sockets[side].send([peer, *parts])
        except (PeerUnreachable, SendQueueFull) as error:
            _log.warning("peer let go", side=side.name.lower(), reason=str(error))
            self._deliver(self._running.undelivered(side, peer))


def _limits(settings: BrokerSettings) -> Limits:
    mb_per_s = settings.client_mb_per_s
    return Limits(
        sessions=settings.client_sessions,
        positions=settings.client_positions,
        frames_per_s=settings.client_frames_per_s,
        bytes_per_s=None if mb_per_s is None else mb_per_s * 1e6,
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
