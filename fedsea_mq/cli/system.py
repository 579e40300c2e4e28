"""A broker, trunk nodes and what else a command starts beside them, wherever they run."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from itertools import count
from typing import Generic, Self, TypeVar

from fedsea_mq.cli.started import STOP_S, Started
from fedsea_mq.errors import ConfigError
from fedsea_mq.settings import Settings
from fedsea_mq.transport.status import StatusWatch

P = TypeVar("P", bound=Started)


def _on_free_ports(settings: Settings) -> Settings:
    """The same, beside whatever else runs on this machine."""
    free = "tcp://127.0.0.1:*"
    direct = None if settings.trunk.direct is None else free
    return settings.replace(broker={"clients": free, "nodes": free}, trunk={"direct": direct})


class System(ABC, Generic[P]):
    """A broker and trunk nodes on free ports. Use with `async with`.

    With `joins` it starts neither, and its clients use the broker of the settings; raises
    `PeerUnreachable` on entry if that does not answer. `settings` is the given settings with the
    endpoints that the broker really listens on. Metrics, if there are to be any, are shown on
    ports of their own: with `keep_endpoints` from that of the settings on, in the order in which
    processes are started, who comes for one that is gone in its place; else on any that are free.

    Raises `ConfigError` where `trunk.stages` and `trunk.blocks` both say what nodes have.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        keep_endpoints: bool = False,
        joins: bool = False,
        trunks: int | None = None,
    ) -> None:
        if settings.trunk.stages > 1 and settings.trunk.blocks is not None:
            raise ConfigError("trunk.stages says each node's blocks: set trunk.blocks to null")
        self._joins = joins
        self._keeps_ports = keep_endpoints
        all_stages = settings.trunk.nodes * settings.trunk.stages
        self._trunks = all_stages if trunks is None else trunks
        self.settings = settings if keep_endpoints or joins else _on_free_ports(settings)
        self._children: list[P] = []
        # Of the processes that show metrics, by name: how far its port is from the first.
        self._ports: dict[str, int] = {}
        self.broker: P
        self.trunks: list[P] = []

    async def __aenter__(self) -> Self:
        if self._joins:
            async with StatusWatch(self.settings.broker, self.settings.security) as watch:
                await watch.report()  # before anything is started that would wait for long
            return self
        try:
            ready = await (await self.start_broker()).wait_ready()
            self.settings = self.settings.replace(
                broker={"clients": ready["clients"], "nodes": ready["nodes"]}
            )
            for number in range(self._trunks):
                await self.start_trunk(number)
            await asyncio.gather(*(trunk.wait_ready() for trunk in self.trunks))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    @abstractmethod
    async def _launch(self, module: str, name: str, settings: Settings) -> P:
        """Have `python -m module` started; does not wait until it is ready."""

    async def start_broker(self) -> P:
        """Start the broker, or another in its place; does not wait until it is ready."""
        self.broker = await self.start("broker", "broker")
        return self.broker

    async def start_trunk(self, number: int) -> P:
        """Start one more trunk node; does not wait until it is ready."""
        trunk, stages = self.settings.trunk, self.settings.trunk.stages
        name = f"{trunk.name or 'trunk'}-{number}"
        # Of each chain the first stage first.
        stage = {} if stages == 1 else {"stages": 1, "blocks": f"{number % stages + 1}/{stages}"}
        own = self.settings.replace(trunk={"name": name, **stage})
        started = await self.start("nodes.trunk", name, own)
        self.trunks.append(started)
        return started

    async def start_client(self, name: str) -> P:
        """Start a client node process; does not wait until it is ready."""
        return await self.start("nodes.client", name)

    async def start_load(self, name: str) -> P:
        """Start a process of simulated clients; does not wait until it is ready."""
        return await self.start("nodes.load", name)

    async def start(self, module: str, name: str, settings: Settings | None = None) -> P:
        """Start `python -m module`, by default with the system's settings."""
        own = self._with_own_port(name, settings or self.settings)
        child = await self._launch(module, name, own)
        self._children.append(child)
        return child

    def _with_own_port(self, name: str, settings: Settings) -> Settings:
        first = settings.metrics.port
        if not first:
            return settings
        # Taken before anything is awaited: others may be started meanwhile.
        free = next(number for number in count() if number not in self._ports.values())
        port = first + self._ports.setdefault(name, free) if self._keeps_ports else 0
        return settings.replace(metrics={"port": port})

    async def stop_trunk(self, trunk: P) -> int:
        """Drain a trunk node, if it runs, and forget it; its exit status."""
        status = await trunk.stop(self._drained_s)
        self.trunks.remove(trunk)
        self._children.remove(trunk)
        self._ports.pop(trunk.name, None)
        return status

    async def __aexit__(self, *_: object) -> None:
        # Clients, then trunks, then the broker: each says goodbye to one that still listens.
        first = [c for c in self._children if c not in self.trunks and c is not self._broker]
        for group in (first, self.trunks, [self._broker] if self._broker else []):
            await asyncio.gather(*(child.stop(self._drained_s) for child in group))

    @property
    def children(self) -> list[P]:
        """Every process that was started, ended ones too."""
        return list(self._children)

    @property
    def _drained_s(self) -> float:
        return STOP_S + self.settings.trunk.drain_s

    @property
    def _broker(self) -> P | None:
        return getattr(self, "broker", None)
