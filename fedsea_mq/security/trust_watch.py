"""Keeps an allow-list as its folder is, while a process runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Self

from fedsea_mq.log import get_logger
from fedsea_mq.security.trust import AllowList, Trusted, TrustFolder

_log = get_logger(__name__)
# How often the folder is looked at: that long a removed key may still be used, at most.
RELOAD_S: Final = 1.0


def _nobody_else_cares(_: frozenset[bytes]) -> None:
    return None


class TrustWatch:
    """Looks at the folder every second. Use with `async with`.

    `on_lost` is called with the ids of keys that are trusted with less than before.
    """

    def __init__(
        self,
        folder: TrustFolder,
        allow_list: AllowList,
        on_lost: Callable[[frozenset[bytes]], None] = _nobody_else_cares,
    ) -> None:
        self._folder = folder
        self._allow_list = allow_list
        self._on_lost = on_lost
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch(), name="fedsea trust")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._watching is not None
        self._watching.cancel()
        await asyncio.wait([self._watching])

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        # What was there at the start may have changed since it was read: read it once more.
        seen: object = None
        while True:
            await asyncio.sleep(RELOAD_S)
            now = await loop.run_in_executor(None, self._folder.signature)
            if now != seen:
                seen = now
                self._take(*await loop.run_in_executor(None, self._folder.readable))

    def _take(self, trusted: list[Trusted], faults: list[str]) -> None:
        for fault in faults:
            _log.error("not trusted", reason=fault)
        lost = self._allow_list.replace(trusted)
        if lost:
            _log.warning("keys are trusted no more", keys=sorted(one.hex() for one in lost))
            self._on_lost(lost)
