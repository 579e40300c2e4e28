"""Keeps an allow-list as its folder is, while a process runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from fedsea_mq.log import get_logger
from fedsea_mq.security.trust import AllowList, Trusted, TrustFolder
from fedsea_mq.serving.background import Background

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
        # A process that could not follow the list any more must not go on by an old one.
        self._background = Background()

    async def __aenter__(self) -> Self:
        await self._background.__aenter__()
        self._background.start(self._watch(), "fedsea trust")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._background.__aexit__(kind, error, trace)

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
