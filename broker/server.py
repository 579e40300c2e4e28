"""The broker's sockets and clock around its core."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Self

import zmq

from broker.core import BrokerCore, BrokerTerms, Send, Side
from fedsea_mq.errors import FedSeaError, NotRunning, PeerUnreachable, SendQueueFull
from fedsea_mq.log import get_logger
from fedsea_mq.protocol.bundle import unbundled_from
from fedsea_mq.settings import BrokerSettings
from fedsea_mq.transport.loop_socket import LoopSocket
from fedsea_mq.transport.outbox import Outbox

_log = get_logger(__name__)


class Broker:
    """A broker on the running event loop; it serves while inside `async with`.

    `clients` and `nodes` are the endpoints it listens on, with the ports that `tcp://host:*` got.
    """

    def __init__(self, settings: BrokerSettings) -> None:
        self._settings = settings
        self._terms = BrokerTerms(settings.heartbeat_ms, settings.timeout_ms)
        self._core: BrokerCore | None = None
        self._sockets = {
            Side.CLIENTS: self._socket(Side.CLIENTS, self._from_client),
            Side.NODES: self._socket(Side.NODES, self._from_node),
        }
        self._outboxes = {side: Outbox(partial(self._transmit, side)) for side in Side}
        self._ticker: asyncio.Task[None] | None = None
        self.clients = settings.clients
        self.nodes = settings.nodes

    def _socket(self, side: Side, on_message: Callable[[list[Any]], None]) -> LoopSocket:
        return LoopSocket(
            zmq.ROUTER,
            on_message,
            max_part_bytes=self._settings.max_part_mb << 20,
            max_queued=self._settings.max_queued_frames,
            copy=False,
            split=partial(unbundled_from, refuse=partial(self._refuse, side)),
        )

    async def __aenter__(self) -> Self:
        self._core = BrokerCore(self._terms, time.monotonic(), secrets.token_bytes(32))
        for side in Side:
            await self._sockets[side].__aenter__()
        try:
            self.clients = self._sockets[Side.CLIENTS].bind(self._settings.clients)
            self.nodes = self._sockets[Side.NODES].bind(self._settings.nodes)
        except BaseException:
            await self._close_sockets()
            raise
        self._ticker = asyncio.create_task(self._tick(), name="fedsea broker clock")
        _log.info("broker ready", clients=self.clients, nodes=self.nodes)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._ticker is not None
        self._ticker.cancel()
        await asyncio.wait([self._ticker])
        await self._close_sockets()

    async def _close_sockets(self) -> None:
        for side in Side:
            self._outboxes[side].flush()
            await self._sockets[side].__aexit__()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._settings.heartbeat_ms / 2000)
            self._deliver(self._running.tick(time.monotonic()))

    @property
    def _running(self) -> BrokerCore:
        if self._core is None:
            raise NotRunning("the broker is not running")
        return self._core

    def _from_client(self, message: list[Any]) -> None:
        peer, *parts = message
        self._deliver(self._running.from_client(bytes(peer), parts, time.monotonic()))

    def _from_node(self, message: list[Any]) -> None:
        peer, *parts = message
        self._deliver(self._running.from_node(bytes(peer), parts, time.monotonic()))

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
