"""`fedsea up`: a broker and trunk nodes from one configuration file, until Ctrl-C."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

from fedsea_mq.cli.kept import Kept
from fedsea_mq.cli.output import console, progress_console
from fedsea_mq.cli.processes import LocalSystem
from fedsea_mq.entry import stop_asked
from fedsea_mq.privacy.audited import too_much
from fedsea_mq.settings import Settings


def warn_of_recovery(settings: Settings, fingerprint: str) -> None:
    """Say once what the audit recovered at this noise, if it is more than the operator allows."""
    found = too_much(settings.noise, fingerprint)
    if found is not None:
        progress_console.print(f"warning: {found}; see docs/privacy.md", style="yellow")


async def up(settings: Settings) -> None:
    """Start everything, say where it listens, start again what is killed; stop all when asked.

    Raises:
        ProcessFailed: one ended by itself, or was killed too often.
    """
    progress_console.print("starting a broker and trunk nodes ...", style="dim")
    async with LocalSystem(settings, keep_endpoints=True) as system:
        _say_ready(system)
        async with asyncio.TaskGroup() as group:
            keeping = [group.create_task(kept.keep()) for kept in _all_kept(system)]
            await stop_asked()
            progress_console.print("stopping ...", style="dim")
            for task in keeping:
                task.cancel()


def _all_kept(system: LocalSystem) -> Iterator[Kept]:
    def say(name: str) -> None:
        progress_console.print(f"{name} was killed, and is started again", style="yellow")

    # On the same ports: nodes and clients come back to it.
    yield Kept("broker", system.start_broker, say, system.broker)
    for number, trunk in enumerate(system.trunks):
        yield Kept(trunk.name, partial(system.start_trunk, number), say, trunk)


def _say_ready(system: LocalSystem) -> None:
    nodes = ", ".join(trunk.ready["node"] for trunk in system.trunks)
    console.print(f"broker for clients  {system.settings.broker.clients}")
    console.print(f"broker for nodes    {system.settings.broker.nodes}")
    console.print(f"trunk nodes         {nodes}")
    for trunk in system.trunks:
        if trunk.ready["direct"] is not None:
            console.print(f"{trunk.ready['node']:<20}{trunk.ready['direct']}, direct")
    for process in (system.broker, *system.trunks):
        if process.ready["metrics"] is not None:
            console.print(f"metrics of {process.name:<9}{process.ready['metrics']}")
    warn_of_recovery(system.settings, system.trunks[0].ready["fingerprint"])
    console.print("ready; Ctrl-C stops everything", style="dim")
