"""Broker, trunk nodes and clients as processes, each started again when it ends.

Every process but the broker reaches it through a cable of its own, unless there are none.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Self

from fedsea_mq.cli.chaos.live.cable import Cable
from fedsea_mq.cli.processes import Child, LocalSystem
from fedsea_mq.errors import ProcessFailed
from fedsea_mq.serving.background import Background
from fedsea_mq.settings import Settings

Serve = Callable[[Child], Awaitable[None]]


class Member:
    """One process of the fleet, and those that took its place."""

    def __init__(self, name: str, start: Callable[[], Awaitable[Child]], serve: Serve) -> None:
        self.name = name
        self.cable: Cable | None = None
        self.is_ready = asyncio.Event()
        self.unclean_ends: list[str] = []
        self._start = start
        self._serve = serve
        self._child: Child | None = None
        # What the process that runs now was sent, and so may end by.
        self._sent: set[signal.Signals] = set()

    async def run(self) -> None:
        """Start it, again and again."""
        while True:
            self._child = await self._start()
            self._sent.clear()
            try:
                if not self._child.ready:
                    await self._child.wait_ready()
                self.is_ready.set()
                await self._serve(self._child)
                await self._note_end(self._child)
            except ProcessFailed as error:
                if signal.SIGKILL not in self._sent:  # before it was ready
                    self.unclean_ends.append(str(error))
            finally:
                self.is_ready.clear()

    async def _note_end(self, child: Child) -> None:
        status = await child.process.wait()
        ends = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 0}
        if status not in {ends[sent] for sent in self._sent if sent in ends}:
            self.unclean_ends.append(f"{self.name} ended with {status}: {child.log_tail()}")

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        assert self._child is not None
        return self._child.process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that runs now."""
        assert self._child is not None
        if self._child.running:
            self._sent.add(number)
            self._child.process.send_signal(number)

    async def ended(self) -> int:
        """Wait until the process that runs now has ended; its status."""
        assert self._child is not None
        return await self._child.process.wait()


class Fleet:
    """The processes, while inside `async with`; what runs in them has yet to be asked for."""

    def __init__(self, settings: Settings, trunks: int, *, cabled: bool = True) -> None:
        self._cabled = cabled
        self._system = LocalSystem(settings, trunks=0)
        self._count = trunks
        self._stack = AsyncExitStack()
        self._background = Background()
        self._cables: list[Cable] = []
        self.broker: Member
        self.trunks: list[Member] = []
        self.clients: list[Member] = []

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._system)
            await stack.enter_async_context(self._background)
            self.broker = Member("broker", self._start_broker, self._serve_broker)
            self._run(self.broker)
            for number in range(self._count):
                self.trunks.append(await self._add(stack, f"trunk-{number}", "nodes.trunk"))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *reason: object) -> None:
        await self._stack.__aexit__(None, None, None)

    async def _start_broker(self) -> Child:
        """The one that is there already, at first."""
        first = self._system.broker
        return first if first.running else await self._system.start_broker()

    async def _serve_broker(self, broker: Child) -> None:
        for cable in self._cables:
            await cable.plug()
        await _until_ended(broker)
        for cable in self._cables:
            cable.unplug()

    @property
    def settings(self) -> Settings:
        """With the endpoints of the broker."""
        return self._system.settings

    async def add_client(self, serve: Serve) -> Member:
        """One more client process; `serve` has it to itself until it ends."""
        name = f"client-{len(self.clients)}"
        member = await self._add(self._stack, name, "nodes.client", serve)
        self.clients.append(member)
        return member

    async def _add(
        self, stack: AsyncExitStack, name: str, module: str, serve: Serve | None = None
    ) -> Member:
        own, cable = self.settings.replace(trunk={"name": name}), None
        if self._cabled:
            port = "nodes" if serve is None else "clients"
            cable = await stack.enter_async_context(Cable(getattr(own.broker, port)))
            self._cables.append(cable)
            own = own.replace(broker={port: cable.endpoint})

        async def start() -> Child:
            return await self._system.start(module, name, own)

        member = Member(name, start, serve or _until_ended)
        member.cable = cable
        self._run(member)
        return member

    def _run(self, member: Member) -> None:
        self._background.start(member.run(), f"chaos {member.name}")

    @property
    def members(self) -> list[Member]:
        """All of them."""
        return [self.broker, *self.trunks, *self.clients]

    async def ready(self) -> None:
        """Wait until every process is ready."""
        for member in self.members:
            await member.is_ready.wait()

    @property
    def unclean_ends(self) -> list[str]:
        """Processes that ended by themselves, or by an error when they were told to stop."""
        return [end for member in self.members for end in member.unclean_ends]


async def _until_ended(child: Child) -> None:
    async for _ in child.lines():
        pass
    await child.process.wait()
