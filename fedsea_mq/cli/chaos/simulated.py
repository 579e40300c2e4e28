"""One seed, simulated: the parties, the faults, and what must hold at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fedsea_mq.cli.chaos.bounds import excesses
from fedsea_mq.cli.chaos.jobs import ClientParty
from fedsea_mq.cli.chaos.leaks import leaks
from fedsea_mq.cli.chaos.parties import BrokerParty, Party, Stage, TrunkParty
from fedsea_mq.cli.chaos.scenario import (
    FAULTY_S,
    GIVE_UP_S,
    LONGEST_S,
    Event,
    Fault,
    Scenario,
    scenario_of,
)
from fedsea_mq.simulation.network import Network
from fedsea_mq.simulation.trace import Trace, TraceLog
from fedsea_mq.simulation.world import World

# By then every generation has ended: what they wait for is there again, and they are patient.
_END_S: Final = FAULTY_S + LONGEST_S + GIVE_UP_S
# Leases are looked at this often, and a frozen process may have to wake up first.
_SLACK_S: Final = 2.0
# How often is looked at what must hold at any time.
_LOOK_S: Final = 0.25
# What is sent has arrived by then, and a heartbeat after it.
_PROMPTLY_S: Final = 0.7


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a seed; `lines` is the trace, if it was wanted."""

    seed: int
    violations: Sequence[str]
    events: int
    virtual_s: float
    lines: Sequence[str]


def simulate(seed: int, *, trace: bool = False) -> Outcome:
    """Run the scenario of a seed to its end."""
    simulation = Simulation(scenario_of(seed), trace=trace)
    if not trace:
        return simulation.run()
    with TraceLog(simulation.say):
        return simulation.run()


class Simulation:
    """One scenario in its own time."""

    def __init__(self, scenario: Scenario, *, trace: bool = False) -> None:
        seed = str(scenario.seed)
        self._scenario = scenario
        self._world = World(Trace(trace))
        self._network = Network(self._world, scenario.weather, seed)
        self._stage = Stage(scenario, self._world, self._network)
        self._broker = BrokerParty(self._stage)
        self._trunks = [TrunkParty(self._stage, n) for n in range(scenario.trunks)]
        self._clients = [ClientParty(self._stage, n, j) for n, j in enumerate(scenario.jobs)]

    def say(self, who: str, what: str) -> None:
        """Put a line into the trace."""
        self._world.say(who, what)

    def run(self) -> Outcome:
        """Let everything happen, and judge."""
        world, watch = self._world, self._stage.watch
        for event in self._scenario.events:
            world.at(event.at_s, self._happens, event)
        world.at(FAULTY_S + LONGEST_S, self._network.heal)
        world.at(_LOOK_S, self._look)
        world.run(_END_S, self._is_over)
        for client in self._clients:
            if client.left:
                watch.broken(client.name, f"{client.left} jobs have not ended")
        watch.judge_turns()
        self._settle()
        for leak in leaks(self._broker, self._trunks):
            watch.broken("at the end", leak)
        self._stop()
        watch.violations += world.faults
        return Outcome(
            self._scenario.seed, watch.violations, world.events, world.now, world.trace.lines
        )

    def _look(self) -> None:
        for excess in excesses(self._broker, self._trunks, self._clients):
            self._stage.watch.broken("at a look", excess)
        if not self._is_over():
            self._world.at(self._world.now + _LOOK_S, self._look)

    def _is_over(self) -> bool:
        return bool(self._stage.watch.violations) or all(
            client.is_done and not client.runs for client in self._clients
        )

    def _settle(self) -> None:
        """Nothing happens any more, until all leases have run out and all who died are noticed."""
        if self._scenario.is_calm:
            # Everybody said when it was over: nothing has to run out.
            self._world.run(self._world.now + _PROMPTLY_S)
            return
        settings = self._scenario.settings
        waits_s = settings.trunk.lease_s + settings.broker.timeout_ms / 1000 + _SLACK_S
        quiet_from = max(self._world.now, FAULTY_S + LONGEST_S)
        self._world.run(quiet_from + waits_s)

    def _stop(self) -> None:
        for party in (*self._clients, *self._trunks, self._broker):
            party.process.kill()

    def _happens(self, event: Event) -> None:
        party = self._party(event)
        self._world.say(party.name, f"FAULT: {event.fault.value} for {event.seconds:.2f} s")
        match event.fault:
            case Fault.KILL_TRUNK | Fault.KILL_BROKER | Fault.KILL_CLIENT:
                party.kill(event.seconds)
            case Fault.LOSE_TRUNK | Fault.LOSE_CLIENT:
                party.kill(event.seconds, silently=True)
            case Fault.DRAIN_TRUNK:
                party.drain(event.seconds)
            case Fault.FREEZE_TRUNK | Fault.FREEZE_BROKER | Fault.FREEZE_CLIENT:
                self._network.freeze(party.process, event.seconds)
            case Fault.CUT_TRUNK | Fault.CUT_CLIENT:
                self._network.cut(party.name, self._broker.name, event.seconds)
            case Fault.RESET_TRUNK | Fault.RESET_CLIENT:
                self._network.break_all_of(party.name)

    def _party(self, event: Event) -> Party:
        kind = event.fault.value
        if "broker" in kind:
            return self._broker
        return (self._trunks if "trunk" in kind else self._clients)[event.party]
