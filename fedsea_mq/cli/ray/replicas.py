"""The trunk nodes of a system on Ray: as many as are wanted, whatever becomes of single ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedsea_mq.cli.ray.remote_child import RemoteChild
from fedsea_mq.cli.ray.system import RaySystem
from fedsea_mq.cli.started import end_of
from fedsea_mq.errors import NoPlace, ProcessFailed


@dataclass(slots=True, eq=False)
class Replica:
    """One trunk node, from when it is wanted to its end. Without `child`, Ray has yet to place it.

    One that `is_leaving` takes no new sessions, and ends when those that it has did or
    `trunk.drain_s` is over.
    """

    number: int
    child: RemoteChild | None = None
    is_ready: bool = False
    is_leaving: bool = False

    @property
    def name(self) -> str | None:
        """What the broker knows it by, once it is placed."""
        return None if self.child is None else self.child.name


class Replicas:
    """Starts, drains and replaces trunk nodes; each lives in a task of `group`.

    They are called by `numbers`: of a chain, those of one stage. `tell` hears, in a line for
    people, what becomes of which. For one that ends unasked, the next
    `resize` starts another. More than `ray.max_restarts` of those raise `ProcessFailed` in the
    group, as does one that ends, or finds no place, while none was ever ready: the next would, too.

    `first_ready` is what the first one said when it was ready.
    """

    def __init__(
        self,
        system: RaySystem,
        group: asyncio.TaskGroup,
        tell: Callable[[str], None],
        numbers: Iterator[int],
    ) -> None:
        self._system = system
        self._group = group
        self._tell = tell
        self._numbers = numbers
        self._living: dict[Replica, asyncio.Task[None]] = {}
        self._restarts = 0
        self.first_ready: asyncio.Future[dict[str, Any]] = asyncio.Future()

    @property
    def names(self) -> frozenset[str]:
        """Of all that are placed, those too that are leaving."""
        return frozenset(replica.name for replica in self._living if replica.name is not None)

    @property
    def ready(self) -> int:
        """How many take sessions."""
        return sum(replica.is_ready and not replica.is_leaving for replica in self._living)

    def resize(self, wanted: int, sessions: Mapping[str, int]) -> None:
        """Start as many as are missing, or have those leave that are too many.

        Those go first that are not ready yet, then those with the fewest `sessions`, by name.
        """
        staying = [replica for replica in self._living if not replica.is_leaving]
        for _ in range(wanted - len(staying)):
            replica = Replica(next(self._numbers))
            self._living[replica] = self._group.create_task(self._live(replica))
        staying.sort(key=lambda one: (one.is_ready, sessions.get(one.name or "", 0)))
        for replica in staying[: max(0, len(staying) - wanted)]:
            replica.is_leaving = True
            self._living[replica].cancel()

    async def _live(self, replica: Replica) -> None:
        try:
            failure = await self._failure_of(replica)
        finally:
            await self._end(replica)
        self._missed(failure)

    async def _failure_of(self, replica: Replica) -> ProcessFailed:
        """See it through, from its start to its end, which nobody asked for."""
        try:
            child = replica.child = await self._system.start_trunk(replica.number)
            said = await child.wait_ready()
        except ProcessFailed as error:
            return error
        replica.is_ready = True
        if not self.first_ready.done():
            self.first_ready.set_result(said)
        self._tell(f"{child.name} is ready on {child.address}")
        status = await child.wait()
        return ProcessFailed(f"{child.name} {end_of(status)}: {child.log_tail()}")

    async def _end(self, replica: Replica) -> None:
        if replica.child is not None:
            if replica.is_leaving:
                self._tell(f"{replica.name} is leaving")
            await self._system.stop_trunk(replica.child)
        del self._living[replica]

    def _missed(self, failure: ProcessFailed) -> None:
        # A full cluster is asked again for as long as the load wants more than it has.
        self._restarts += not isinstance(failure, NoPlace)
        most = self._system.settings.ray.max_restarts
        if not self.first_ready.done() or (most is not None and self._restarts > most):
            raise failure
        self._tell(str(failure))
