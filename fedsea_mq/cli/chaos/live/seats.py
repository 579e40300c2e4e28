"""The lanes of one client process: it is asked for each, and for the next when one has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from fedsea_mq.cli.chaos.live.lanes import Lane
from fedsea_mq.cli.processes import Child
from fedsea_mq.errors import ProcessFailed

# A generation that has no token for so long, with nothing wrong any more, is stuck.
STUCK_S: Final = 60.0


class Seats:
    """Serves one client process at a time, for as long as `goes_on`."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes = {lane.name: lane for lane in lanes}
        self.goes_on = True

    async def serve(self, child: Child) -> None:
        """Have the process generate, until it ends."""
        for lane in self.lanes.values():
            self._ask(child, lane)
        try:
            async for line in child.lines():
                self._hear(child, line)
        finally:
            for lane in self.lanes.values():
                lane.lose_client()

    def _hear(self, child: Child, line: dict[str, object]) -> None:
        lane = self.lanes.get(str(line.get("id")).partition(".")[0])
        if lane is None:
            return
        was_running = lane.is_running
        lane.hear(line, time.monotonic())
        if was_running and not lane.is_running:
            self._ask(child, lane)

    def _ask(self, child: Child, lane: Lane) -> None:
        if self.goes_on and child.running:
            child.ask(lane.begin())


async def until_idle(seats: Sequence[Seats], within_s: float) -> int:
    """Ask for no more, and wait for what runs; the generations that did not end in time."""
    for one in seats:
        one.goes_on = False
    lanes = [lane for one in seats for lane in one.lanes.values()]
    ends_at = time.monotonic() + within_s
    while running := sum(lane.is_running for lane in lanes):
        if time.monotonic() > ends_at:
            break
        await asyncio.sleep(0.05)
    return running


async def until_all(lanes: Sequence[Lane], holds: Callable[[Lane], bool]) -> None:
    """Wait until it holds of each lane. Raises `ProcessFailed` if that takes too long."""
    ends_at = time.monotonic() + STUCK_S
    while left := [lane.name for lane in lanes if not holds(lane)]:
        if time.monotonic() > ends_at:
            raise ProcessFailed(f"{len(left)} generations are stuck, among them {left[0]}")
        await asyncio.sleep(0.05)
