"""A system with keys in processes of its own, whose honest clients generate all the time."""

from __future__ import annotations

import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final, Self

import numpy as np
import psutil

from fedsea_mq.cli.chaos.live.fleet import Fleet
from fedsea_mq.cli.chaos.live.lanes import Lane, Ledger, requests
from fedsea_mq.cli.chaos.live.seats import STUCK_S, Seats, until_all, until_idle
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.partition import Cut
from fedsea_mq.security.identity import Party
from fedsea_mq.security.keys import read_public, write_pair
from fedsea_mq.security.trust import TrustFolder
from fedsea_mq.settings import Settings

HONEST, MALLORY, REVOKED, STRANGER = "honest", "mallory", "revoked", "stranger"
_LANES: Final = 8


@dataclass(frozen=True, slots=True)
class Model:
    """What an attacker knows of the model: everybody does."""

    fingerprint: str
    hidden: int


class Besieged:
    """Broker, trunk node and a process of honest clients. Use with `async with`.

    `mallory` has a key that is trusted as a client's, `stranger` one that nobody trusts.
    """

    def __init__(self, settings: Settings) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fedsea-keys-")
        self._keys = Path(self._folder.name)
        for name in (HONEST, MALLORY, REVOKED, STRANGER):
            write_pair(self._keys, name)
        self.trust = TrustFolder(self._keys / "trust")
        self.allow(Party.TRUNK, HONEST)
        for name in (HONEST, MALLORY, REVOKED):
            self.allow(Party.CLIENT, name)
        self._settings = self._own(settings, HONEST)
        self.ledger = Ledger()
        self._lanes: list[Lane] = []
        self._stack = AsyncExitStack()
        self.fleet: Fleet
        self.model: Model

    def allow(self, party: Party, name: str) -> None:
        """Trust a key."""
        self.trust.add(party, name, read_public(self._keys / f"{name}.pub"))

    def _own(self, settings: Settings, name: str) -> Settings:
        return settings.replace(
            security={
                "key": str(self._keys / f"{name}.key"),
                "broker_key": str(self._keys / f"{HONEST}.pub"),
                "trust": str(self.trust.path),
            }
        )

    def settings(self, name: str) -> Settings:
        """Those of whoever has the key of this name."""
        return self._own(self.fleet.settings, name)

    async def __aenter__(self) -> Self:
        model = self._settings.model
        checkpoint = Checkpoint.open(model.path)
        cut = Cut(model.head_blocks, model.tail_blocks)
        self.model = Model(checkpoint.fingerprint(cut), checkpoint.hidden)
        asked = requests(_LANES, int(checkpoint.config.vocab_size), Random(0))
        self._lanes = [Lane(f"lane{n}", one, self.ledger) for n, one in enumerate(asked)]
        seats = Seats(self._lanes)
        async with AsyncExitStack() as stack:
            self.fleet = await stack.enter_async_context(
                Fleet(self._settings, trunks=1, cabled=False)
            )
            await self.fleet.add_client(seats.serve)
            await self.fleet.ready()
            await until_all(self._lanes, lambda lane: lane.knows)
            stack.push_async_callback(until_idle, [seats], STUCK_S)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        self._folder.cleanup()

    def watch(self) -> None:
        """Begin to time tokens."""
        now = time.monotonic()
        for lane in self._lanes:
            lane.watch_from(now)

    @property
    def token_p95_s(self) -> float:
        """95th percentile of the honest clients' times from token to token since `watch`."""
        waits = [wait for lane in self._lanes for wait in lane.waits]
        return float(np.percentile(waits, 95)) if waits else float("inf")

    @property
    def rss_bytes(self) -> dict[str, int]:
        """Memory of broker and trunk now."""
        return {
            member.name: psutil.Process(member.pid).memory_info().rss
            for member in (self.fleet.broker, *self.fleet.trunks)
        }
