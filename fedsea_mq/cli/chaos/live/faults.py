"""What is done to the fleet, and from when on it has no excuse."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from enum import StrEnum
from random import Random
from typing import Final

from fedsea_mq.cli.chaos.live.fleet import Fleet, Member

# Shortest and longest time of a fault that has an end, in units of the broker's timeout.
_SHORTEST, _LONGEST = 0.1, 2.0


class FaultKind(StrEnum):
    """One way to fail."""

    TRUNK_KILLED = "trunk killed"
    TRUNK_DRAINED = "trunk drained"
    TRUNK_FROZEN = "trunk frozen"
    TRUNK_CUT = "trunk's link cut"
    TRUNK_HELD = "trunk's link held up"
    BROKER_KILLED = "broker killed"
    BROKER_FROZEN = "broker frozen"
    CLIENT_KILLED = "client killed"
    CLIENT_FROZEN = "client frozen"
    CLIENT_CUT = "client's link cut"
    CLIENT_HELD = "client's link held up"


def shuffled_kinds(draw: Random) -> Iterator[FaultKind]:
    """Every kind in turn, in an order drawn anew each time."""
    while True:
        kinds = list(FaultKind)
        draw.shuffle(kinds)
        yield from kinds


class Injector:
    """Does faults to a fleet, one after the other."""

    def __init__(self, fleet: Fleet, draw: Random) -> None:
        self._fleet = fleet
        self._draw = draw
        self._timeout_s = fleet.settings.broker.timeout_ms / 1000

    async def inject(self, kind: FaultKind) -> float:
        """Do it, and wait for its end where it has one.

        Returns from when on the others are to go on without what failed: the time at which a node
        was taken away, whose sessions are to move; else that at which the fault was over.
        """
        return await _WAYS[kind](self)

    async def kill_trunk(self) -> float:
        """SIGKILL."""
        return await self._end(await self._spare_trunk(), signal.SIGKILL)

    async def drain_trunk(self) -> float:
        """SIGTERM; sessions that take longer than the drain are moved."""
        return await self._end(await self._spare_trunk(), signal.SIGTERM)

    async def kill_broker(self) -> float:
        """SIGKILL; over when the next one listens."""
        await self._end(self._fleet.broker, signal.SIGKILL)
        await self._fleet.broker.is_ready.wait()
        return time.monotonic()

    async def kill_client(self) -> float:
        """SIGKILL; over when the next one is ready."""
        client = self._draw.choice(self._fleet.clients)
        await self._end(client, signal.SIGKILL)
        await client.is_ready.wait()
        return time.monotonic()

    async def freeze_trunk(self) -> float:
        """SIGSTOP, for shorter or longer than makes it dead."""
        return (await self._freeze(await self._spare_trunk()))[0]

    async def freeze_broker(self) -> float:
        """SIGSTOP for a while."""
        return (await self._freeze(self._fleet.broker))[1]

    async def freeze_client(self) -> float:
        """SIGSTOP for a while."""
        return (await self._freeze(self._draw.choice(self._fleet.clients)))[1]

    async def cut_trunk(self) -> float:
        """Its connection breaks, and none is made for a while."""
        return (await self._break(await self._spare_trunk(), held=False))[0]

    async def hold_trunk(self) -> float:
        """Nothing passes on its connection for a while."""
        return (await self._break(await self._spare_trunk(), held=True))[0]

    async def cut_client(self) -> float:
        """Its connection breaks, and none is made for a while."""
        return (await self._break(self._draw.choice(self._fleet.clients), held=False))[1]

    async def hold_client(self) -> float:
        """Nothing passes on its connection for a while."""
        return (await self._break(self._draw.choice(self._fleet.clients), held=True))[1]

    async def _spare_trunk(self) -> Member:
        """One beside which there is another that can take over."""
        for trunk in self._fleet.trunks:
            await trunk.is_ready.wait()
        return self._draw.choice(self._fleet.trunks)

    async def _end(self, member: Member, how: signal.Signals) -> float:
        at = time.monotonic()
        member.signal(how)
        await member.ended()
        member.is_ready.clear()
        return at

    async def _freeze(self, member: Member) -> tuple[float, float]:
        at = time.monotonic()
        member.signal(signal.SIGSTOP)
        try:
            await self._a_while()
        finally:
            member.signal(signal.SIGCONT)
        return at, time.monotonic()

    async def _break(self, member: Member, *, held: bool) -> tuple[float, float]:
        assert member.cable is not None
        at = time.monotonic()
        if held:
            member.cable.hold()
        else:
            member.cable.cut()
        try:
            await self._a_while()
        finally:
            member.cable.mend()
        return at, time.monotonic()

    async def _a_while(self) -> None:
        await asyncio.sleep(self._draw.uniform(_SHORTEST, _LONGEST) * self._timeout_s)


_WAYS: Final[Mapping[FaultKind, Callable[[Injector], Awaitable[float]]]] = {
    FaultKind.TRUNK_KILLED: Injector.kill_trunk,
    FaultKind.TRUNK_DRAINED: Injector.drain_trunk,
    FaultKind.TRUNK_FROZEN: Injector.freeze_trunk,
    FaultKind.TRUNK_CUT: Injector.cut_trunk,
    FaultKind.TRUNK_HELD: Injector.hold_trunk,
    FaultKind.BROKER_KILLED: Injector.kill_broker,
    FaultKind.BROKER_FROZEN: Injector.freeze_broker,
    FaultKind.CLIENT_KILLED: Injector.kill_client,
    FaultKind.CLIENT_FROZEN: Injector.freeze_client,
    FaultKind.CLIENT_CUT: Injector.cut_client,
    FaultKind.CLIENT_HELD: Injector.hold_client,
}
