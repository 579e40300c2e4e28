"""What a trunk node tells each of its brokers: that it is there, what it has, and what it does."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from fedsea_mq.errors import FedSeaError
from fedsea_mq.log import get_logger
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import MAX_SESSIONS_A_NODE, Load, Register
from fedsea_mq.serving.background import Background
from fedsea_mq.serving.batcher import StepStats
from fedsea_mq.serving.memory import peak_rss_bytes
from fedsea_mq.serving.trunk_sessions import TrunkSessions
from nodes.membership import Membership
from nodes.trunk.engine import Offer
from nodes.trunk.meter import Meter
from nodes.trunk.training import TrunkTraining
from nodes.trunk.wires import Wires

_log = get_logger(__name__)
# A broker has heard by then what it was told.
_MADE_KNOWN_S = 0.1


@dataclass(frozen=True, slots=True)
class Carried:
    """What a node offers and has taken on; `training` is of `run`, if it trains."""

    name: str
    offer: Offer
    sessions: TrunkSessions
    run: str | None
    training: TrunkTraining | None
    stats: StepStats

    @property
    def training_sessions(self) -> list[bytes]:
        """The sessions of members that it trains with."""
        return [] if self.training is None else self.training.sessions.ids

    @property
    def training_owners(self) -> list[bytes]:
        """Whose they are."""
        return [] if self.training is None else self.training.sessions.owners


class Memberships:
    """One with each broker. They end when the tasks that `start` started are cancelled."""

    def __init__(self, carried: Carried, wires: Wires) -> None:
        self._carried = carried
        self._of = {broker: self._membership(wires, broker) for broker in wires.brokers}
        # For each of them its own: what one was told, the other was not.
        self._meters = {broker: Meter(carried.stats, _now()) for broker in wires.brokers}

    @property
    def all(self) -> Collection[Membership]:
        """The first broker's first."""
        return self._of.values()

    def start(self, background: Background) -> None:
        """Register, and stay so."""
        for membership in self.all:
            background.start(membership.run(), f"{self._carried.name} membership")

    def leave(self) -> None:
        """Tell all brokers that the node is gone; who cannot be told finds out by its silence."""
        for membership in self.all:
            try:
                membership.leave()
            except FedSeaError as error:
                _log.info("not told that this node leaves", reason=str(error))

    def takes(self, frame: Frame, origin: bytes) -> bool:
        """Handle a frame that a broker itself says, and no session; whether it was one."""
        membership = self._of.get(origin)
        if membership is None or frame.envelope.session:
            return False
        try:
            membership.receive(frame)
        except FedSeaError as error:
            _log.warning("frame refused", reason=str(error))
        return True

    async def registered(self) -> None:
        """Wait until a broker knows the node."""
        waits = [asyncio.create_task(membership.registered.wait()) for membership in self.all]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def make_known(self) -> None:
        """Tell all brokers of its sessions: not each knows those that speak by another."""
        for membership in self.all:
            membership.say_again()
        await asyncio.sleep(_MADE_KNOWN_S)

    def _membership(self, wires: Wires, broker: bytes) -> Membership:
        return Membership(
            partial(wires.send, to=broker),
            partial(self._offer, broker),
            partial(self._load, broker),
            partial(self._is_silent, broker),
            wires.broker_at(broker),
        )

    def _is_silent(self, broker: bytes) -> None:
        """Clients go to the other broker now, which is to know of their sessions."""
        for other, membership in self._of.items():
            if other != broker:
                membership.say_again()

    def _offer(self, broker: bytes) -> Register:
        carried = self._carried
        offer, sessions = carried.offer, carried.sessions
        sessions.told_to(broker)
        return Register(
            name=carried.name,
            fingerprint=offer.fingerprint,
            head_blocks=offer.cut.head_blocks,
            tail_blocks=offer.cut.tail_blocks,
            hidden=offer.hidden,
            load=self._load(broker),
            sessions=[*sessions.ids, *carried.training_sessions],
            owners=[*sessions.owners, *carried.training_owners],
            run=carried.run,
            adapters=list(offer.adapters),
            stage=offer.stage,
        )

    def _load(self, broker: bytes) -> Load:
        sessions = self._carried.sessions
        peaks = sessions.take_peaks(broker)
        count = len(sessions) + len(self._carried.training_sessions)
        return Load(
            kv_positions_free=0 if sessions.draining else sessions.kv_free,
            kv_positions_total=sessions.terms.kv_positions,
            sessions=count,
            # It must be able to name them all when it registers.
            sessions_free=max(0, min(sessions.slots_free, MAX_SESSIONS_A_NODE - count)),
            direct_sessions=sessions.direct,
            peak_rss_bytes=peak_rss_bytes(),
            sessions_peak=peaks.sessions,
            kv_positions_peak=peaks.kv_reserved,
            **self._meters[broker].rates(_now()),
        )


def _now() -> float:
    return asyncio.get_running_loop().time()
