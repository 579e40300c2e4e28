"""The parties of a simulation: the real broker, trunk and client nodes in simulated processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from random import Random
from typing import Any, Final

from broker.server import Broker
from fedsea_mq.cli.chaos.engines import ChainClientEngine, ChainTrunkEngine, Pace
from fedsea_mq.cli.chaos.scenario import Scenario
from fedsea_mq.cli.chaos.watch import Watch
from fedsea_mq.serving.trunk_sessions import Compute
from fedsea_mq.simulation.chain_model import ChainModel
from fedsea_mq.simulation.network import Network
from fedsea_mq.simulation.sockets import SimulatedContext
from fedsea_mq.simulation.world import Process, World
from fedsea_mq.transport.link import PeerLink
from fedsea_mq.transport.loop_socket import Context
from nodes.client.node import ClientNode
from nodes.trunk.node import TrunkNode

_AGAIN_S: Final = 0.2
# What was cached is sent again and computed again within this time.
_REPLAY_S: Final = 0.5
Main = Callable[["Party"], Coroutine[Any, Any, None]]


class Stage:
    """What all parties of a simulation share."""

    def __init__(self, scenario: Scenario, world: World, network: Network) -> None:
        self.scenario = scenario
        self.world = world
        self.network = network
        self.model = ChainModel(scenario.tail_blocks)
        self.watch = Watch(
            world,
            self.model,
            keeps_sessions=scenario.keeps_sessions,
            is_orderly=not scenario.weather.is_worse_than_tcp,
        )
        if scenario.is_calm:
            network.spies.append(self.watch.sends)

    def kept_waiting(self, who: str, seconds: float) -> None:
        """A client waited so long for a token."""
        most_s = 2 * self.scenario.settings.broker.timeout_ms / 1000 + _REPLAY_S
        if self.scenario.recovers_soon and seconds > most_s:
            self.watch.broken(who, f"waited {seconds:.2f} s for a token, {most_s:.2f} s at most")


class Party:
    """One process that is started again after it was killed, as a supervisor would."""

    def __init__(self, stage: Stage, name: str, main: Main) -> None:
        self.stage = stage
        self.name = name
        self._main = main
        self._lives = 0
        self.process: Process
        self.context: Context
        self.stop = asyncio.Event()
        self.start()

    @property
    def runs(self) -> bool:
        """Whether there is a process."""
        return self.process.alive

    @property
    def life(self) -> str:
        """A name of this process, and of none before it."""
        return f"{self.name}.{self._lives}"

    def entropy(self) -> Callable[[int], bytes]:
        """The random bytes of this process."""
        return Random(f"{self.stage.scenario.seed}/{self.life}").randbytes

    def start(self) -> None:
        """Start it, again."""
        self._lives += 1
        self.stop = asyncio.Event()
        self.process = Process(self.stage.world, self.name)
        self._sockets = SimulatedContext(self.process, self.stage.network)
        self.context = self._sockets.of_zmq()
        self.process.start(self._main(self))

    def kill(self, down_s: float, *, silently: bool = False) -> None:
        """SIGKILL, or the machine's power is cut; and a new process after so long."""
        if self.runs:
            self._sockets.vanishes = silently
            self.process.kill()
            self.start_in(down_s)

    def drain(self, down_s: float) -> None:
        """SIGTERM, and a new process so long after it ended."""
        if self.runs:
            self.process.on_end.append(partial(self.start_in, down_s))
            self.terminate()

    def terminate(self) -> None:
        """SIGTERM."""
        self.process.call_soon(self.stop.set)

    def start_in(self, seconds: float) -> None:
        """Start it again, if it does not run by then."""
        world = self.stage.world
        world.at(world.now + seconds + _AGAIN_S, self._start_if_gone)

    def _start_if_gone(self) -> None:
        if not self.runs and not self.is_done:
            self.stage.world.say(self.name, "is started again")
            self.start()

    @property
    def is_done(self) -> bool:
        """Whether it has nothing left to do."""
        return False


class BrokerParty(Party):
    """The broker."""

    def __init__(self, stage: Stage) -> None:
        self.broker: Broker | None = None
        super().__init__(stage, "broker", self._serve)

    async def _serve(self, _: Party) -> None:
        async with Broker(self.stage.scenario.settings.broker, context=self.context) as self.broker:
            await self.stop.wait()


class _WatchedTrunk(TrunkNode):
    """Tells of what it computes."""

    def __init__(self, *arguments: Any, tell: Callable[[Compute], None]) -> None:
        super().__init__(*arguments)
        self._tell = tell

    def _compute(self, work: Compute) -> None:
        self._tell(work)
        super()._compute(work)


class TrunkParty(Party):
    """A trunk node."""

    def __init__(self, stage: Stage, number: int) -> None:
        self.node: TrunkNode | None = None
        self._settings = stage.scenario.settings.replace(trunk={"name": f"trunk{number}"})
        super().__init__(stage, f"trunk{number}", self._serve)

    @property
    def serves(self) -> bool:
        """Whether its process has come as far as to be a node."""
        return self.runs and self.node is not None and self.node._parts is not None

    async def _serve(self, _: Party) -> None:
        stage, life = self.stage, self.life
        node = _WatchedTrunk(
            self._settings,
            ChainTrunkEngine(self._settings, stage.model, Pace()),
            self.context,
            tell=partial(stage.watch.computes, life),
        )
        self.node = node
        async with node:
            await self.stop.wait()
            await node.drain()


def client_node(party: Party) -> ClientNode:
    """The client node of a party's process."""
    settings, entropy = party.stage.scenario.settings, party.entropy()
    return ClientNode(
        settings,
        partial(PeerLink, context=party.context),
        engine=ChainClientEngine(settings, party.stage.model, entropy),
        entropy=entropy,
    )
