"""`fedsea up --on ray`: a broker here, trunk nodes over a cluster, as many as the load needs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from itertools import count

from fedsea_mq.cli.kept import Kept
from fedsea_mq.cli.output import console, progress_console
from fedsea_mq.cli.ray.replicas import Replicas
from fedsea_mq.cli.ray.scaling import Scaler, demand_of
from fedsea_mq.cli.ray.system import RaySystem
from fedsea_mq.cli.serve import warn_of_recovery
from fedsea_mq.entry import stop_asked
from fedsea_mq.errors import PeerUnreachable
from fedsea_mq.settings import Settings
from fedsea_mq.transport.status import StatusWatch


async def up(settings: Settings) -> None:
    """Start everything, say where it listens, keep and scale it; stop everything when asked.

    Raises:
        ProcessFailed: the broker ended with an error, or trunk nodes did too often.
        NotTrusted: the key may not ask the broker what its nodes hold, which clients may.
    """
    _tell("starting a broker here and trunk nodes on Ray ...")
    async with RaySystem(settings, keep_endpoints=True, trunks=0) as system:
        console.print(f"broker for clients  {system.settings.broker.clients}")
        console.print(f"broker for nodes    {system.settings.broker.nodes}")
        # On the same ports: nodes and clients come back to it.
        broker = Kept("broker", system.start_broker, _tell_again, system.broker)
        async with asyncio.TaskGroup() as group:
            stages = settings.trunk.stages
            fleet = [Replicas(system, group, _tell, count(n, stages)) for n in range(stages)]
            tasks = [
                group.create_task(broker.keep()),
                group.create_task(_scale(system, fleet)),
                group.create_task(_say_ready(settings, fleet)),
            ]
            await stop_asked()
            _tell("stopping ...")
            for task in tasks:
                task.cancel()
            for replicas in fleet:
                replicas.resize(0, {})


def _tell(line: str) -> None:
    progress_console.print(line, style="dim", markup=False, soft_wrap=True)


def _tell_again(name: str) -> None:
    _tell(f"{name} is started again")


async def _scale(system: RaySystem, fleet: Sequence[Replicas]) -> None:
    """Ask the broker what its nodes hold, again and again, and have as many as that needs.

    Each stage of a chain by itself: sessions pass through all of them.
    """
    terms = system.settings.ray
    scalers = [Scaler(terms) for _ in fleet]
    async with StatusWatch(system.settings.broker, system.settings.security) as watch:
        while True:
            with suppress(PeerUnreachable):  # a broker that is being started again is asked later
                report = await watch.report()
                sessions = {node.name: node.load.sessions for node in report.nodes}
                for replicas, scaler in zip(fleet, scalers, strict=True):
                    demand = demand_of(report, replicas.names, replicas.ready, terms.node_sessions)
                    wanted = scaler.wanted(demand, asyncio.get_running_loop().time())
                    replicas.resize(wanted, sessions)
            await asyncio.sleep(terms.interval_s)


async def _say_ready(settings: Settings, fleet: Sequence[Replicas]) -> None:
    for replicas in fleet:
        said = await replicas.first_ready
    warn_of_recovery(settings, said["fingerprint"])
    console.print("ready; Ctrl-C stops everything", style="dim")
