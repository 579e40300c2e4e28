"""A child process that is started again when something kills it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from time import monotonic
from typing import Any, Final, NoReturn

from fedsea_mq.cli.started import Started, end_of
from fedsea_mq.errors import ProcessFailed

Start = Callable[[], Awaitable[Started]]
RESTARTS: Final = 20
_STEADY_S: Final = 600.0


class Kept:
    """One role of a run, whatever process plays it now.

    A process that a signal ended is started again, at most `RESTARTS` times in a row: one that ran
    for long counts anew. One that ended by itself with an error would do so again: that ends the
    run.
    """

    def __init__(
        self,
        name: str,
        start: Start,
        on_restart: Callable[[str], None],
        child: Started | None = None,
    ) -> None:
        self.name = name
        self._start = start
        self._on_restart = on_restart
        self.child = child

    async def ready(self) -> Started:
        """Start the first process, and wait until it is ready. Raises `ProcessFailed`."""
        self.child = await self._start()
        await self.child.wait_ready()
        return self.child

    async def keep(self) -> NoReturn:
        """See that one runs, whatever it says. Raises `ProcessFailed`, also if it ends well."""
        async for _ in self.lines():
            pass
        raise ProcessFailed(f"{self.name} was stopped")

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        """What its processes say, until one ends well.

        Raises:
            ProcessFailed: one ended with an error, or too many were killed.
        """
        killed = 0
        while killed <= RESTARTS:
            if self.child is None:
                self.child = await self._start()
            child, begun = self.child, monotonic()
            async for line in child.lines():
                yield line
            status = await child.wait()
            if status == 0:
                return
            if status > 0:
                raise ProcessFailed(f"{self.name} {end_of(status)}: {child.log_tail()}")
            killed = 1 if monotonic() - begun > _STEADY_S else killed + 1
            if killed <= RESTARTS:
                self._on_restart(self.name)
                self.child = None
        raise ProcessFailed(f"{self.name} was killed more than {RESTARTS} times")
