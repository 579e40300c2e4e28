"""Many generations on real processes, one fault after the other, and what came of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from random import Random
from statistics import median
from typing import Any, Final

import numpy as np

from fedsea_mq.cli.chaos.live.faults import FaultKind, Injector, shuffled_kinds
from fedsea_mq.cli.chaos.live.fleet import Fleet
from fedsea_mq.cli.chaos.live.lanes import Lane, Ledger, requests
from fedsea_mq.cli.chaos.live.seats import STUCK_S, Seats, until_all, until_idle
from fedsea_mq.cli.output import progress_bar
from fedsea_mq.errors import FedSeaError
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.settings import Settings
from fedsea_mq.transport.status import StatusWatch

# Quick to notice who is gone, so that many faults take minutes; noise and lossy states off, so that
# every token can be told from that of another run.
DEFAULTS: Final = (
    "broker.heartbeat_ms=300",
    "broker.timeout_ms=1500",
    "client.request_timeout_s=0.5",
    "client.give_up_s=60",
    "client.wire_dtype=fp32",
    "trunk.lease_s=10",
    "trunk.drain_s=2",
    "noise.mode=off",
    "log.level=error",
)
# Between a fault that all have recovered from and the next.
_REST_S: Final = 0.5
_TOKENS_BETWEEN: Final = 3


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything."""

    faults: int
    trunks: int
    clients: int
    lanes_a_client: int

    def with_faults(self, faults: int) -> Scale:
        """The same with another number of faults."""
        return replace(self, faults=faults)


FULL: Final = Scale(faults=200, trunks=3, clients=4, lanes_a_client=16)
QUICK: Final = Scale(faults=10, trunks=3, clients=2, lanes_a_client=8)


@dataclass(slots=True)
class Endured:
    """What came of an ordeal; recoveries in seconds, by kind of fault."""

    scale: Scale
    ledger: Ledger
    timeout_s: float
    recoveries: dict[FaultKind, list[float]] = field(default_factory=dict)
    unfinished: int = 0
    leaked_positions: int = 0
    unclean_ends: Sequence[str] = ()
    took_s: float = 0.0

    @property
    def injected(self) -> int:
        """Faults that were done."""
        return sum(len(waits) for waits in self.recoveries.values())

    @property
    def held(self) -> bool:
        """Whether nothing was wrong, lost or left."""
        ledger = self.ledger
        bad = ledger.wrong_tokens + ledger.lost_tokens + self.leaked_positions + self.unfinished
        return not bad and not ledger.errors and not self.unclean_ends

    def as_json(self) -> dict[str, Any]:
        """As the report tells it; `leaked_pages` counts KV positions, of which a page has one."""
        ledger = self.ledger
        waits = [wait for some in self.recoveries.values() for wait in some]
        return {
            "injected": self.injected,
            "wrong_tokens": ledger.wrong_tokens,
            "lost_tokens": ledger.lost_tokens,
            "leaked_pages": self.leaked_positions,
            "unfinished": self.unfinished + len(ledger.errors),
            "recovery_p95_s": float(np.percentile(waits, 95)) if waits else 0.0,
            "recovery_max_s": max(waits, default=0.0),
            "timeout_s": self.timeout_s,
            "recovery_s_by_fault": {
                str(kind): {"n": len(some), "median": median(some), "max": max(some)}
                for kind, some in self.recoveries.items()
            },
            "lanes": self.scale.clients * self.scale.lanes_a_client,
            "generations": ledger.generations,
            "tokens": ledger.tokens,
            "begun_again": ledger.begun_again,
            "errors": ledger.errors[:20],
            "unclean_ends": list(self.unclean_ends)[:20],
            "took_s": self.took_s,
        }


async def endure(settings: Settings, scale: Scale, draw: Random) -> Endured:
    """Start everything, do the faults, and count.

    Raises:
        ProcessFailed: the generations do not even begin, or stop for good.
    """
    began = time.monotonic()
    vocab = int(Checkpoint.open(settings.model.path).config.vocab_size)
    ledger = Ledger()
    asked = requests(scale.clients * scale.lanes_a_client, vocab, draw)
    lanes = [Lane(f"lane{number}", one, ledger) for number, one in enumerate(asked)]
    seats = [Seats(lanes[number :: scale.clients]) for number in range(scale.clients)]
    done = Endured(scale, ledger, settings.broker.timeout_ms / 1000)
    async with Fleet(settings, scale.trunks) as fleet:
        for one in seats:
            await fleet.add_client(one.serve)
        await fleet.ready()
        await until_all(lanes, lambda lane: lane.knows)
        await _faults(fleet, lanes, done, draw)
        done.unfinished = await until_idle(seats, STUCK_S)
        done.leaked_positions = await _leaked(fleet.settings)
        done.unclean_ends = fleet.unclean_ends
    done.took_s = time.monotonic() - began
    return done


async def _faults(fleet: Fleet, lanes: Sequence[Lane], done: Endured, draw: Random) -> None:
    injector = Injector(fleet, draw)
    with progress_bar() as progress:
        task = progress.add_task("faults", total=done.scale.faults)
        for kind in islice(shuffled_kinds(draw), done.scale.faults):
            progress.update(task, description=f"faults: {kind:21}")
            recovered = await _fault(injector, kind, lanes)
            done.recoveries.setdefault(kind, []).append(recovered)
            progress.advance(task)


async def _fault(injector: Injector, kind: FaultKind, lanes: Sequence[Lane]) -> float:
    """Do one; the longest time that a generation then waited for a token."""
    since = await injector.inject(kind)
    for lane in lanes:
        lane.watch_from(since)
    await asyncio.sleep(_REST_S)
    await until_all(lanes, lambda lane: lane.tokens_since >= _TOKENS_BETWEEN)
    now = time.monotonic()
    return max(lane.longest_wait(now) for lane in lanes)


async def _leaked(settings: Settings) -> int:
    """KV positions that are still taken when every lease has run out."""
    ends_at = time.monotonic() + settings.trunk.lease_s + settings.broker.timeout_ms / 1000
    leaked = 0
    async with StatusWatch(settings.broker, settings.security) as watch:
        while time.monotonic() < ends_at:
            try:
                nodes = (await watch.report()).nodes
            except FedSeaError:
                continue
            leaked = sum(n.load.kv_positions_total - n.load.kv_positions_free for n in nodes)
            if not leaked:
                break
            await asyncio.sleep(0.2)
    return leaked
