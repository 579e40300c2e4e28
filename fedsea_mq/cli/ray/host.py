"""The Ray actor that starts one of our processes where Ray has put it.

The process is a child of the actor, not in it: the entry point is the one that is used without Ray,
with its signals, its drain on SIGTERM and its own event loop. Ray decides where, and notices when
the machine is gone.
"""

from __future__ import annotations

import asyncio
import re
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ray

from fedsea_mq.cli.processes import Child
from fedsea_mq.errors import ConfigError
from fedsea_mq.settings import Settings

_PORT: Final = re.compile(r"tcp://.*:([0-9]+|\*)")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: its exit status, that of a signal below 0, and the end of its log."""

    status: int
    log: str


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start, as `python -m module`, in a folder that its machine must have, too.

    What listens does so at `address` or, without one, at the address that Ray knows its machine by.
    """

    module: str
    name: str
    settings: Settings
    address: str | None
    working_in: Path


# What is said of a process whose machine does not answer any more.
LOST: Final = Ended(-signal.SIGKILL, "its machine, or Ray's worker on it, is gone")


class ProcessHost:
    """One process of ours. An async actor: its methods run side by side on the actor's loop."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fedsea-")
        self._child: Child

    async def start(self, launch: Launch) -> str:
        """Start a process on this machine, whose address it gives.

        Raises:
            ConfigError: this machine has no such folder, or nothing can listen where it should.
        """
        here: str = ray.util.get_node_ip_address()
        if not await asyncio.to_thread(launch.working_in.is_dir):
            raise ConfigError(
                f"{here} has no folder {launch.working_in}, which the command runs in: relative "
                "paths of the settings are of it"
            )
        self._child = await Child.start(
            launch.module,
            launch.name,
            listening_at(launch.address or here, launch.module, launch.settings),
            Path(self._folder.name),
            working_in=launch.working_in,
        )
        return here

    async def read(self) -> bytes | Ended:
        """The process's next line or, after the last, how it ended."""
        return await self._child.read_line() or await self._ended()

    async def write(self, request: dict[str, Any]) -> None:
        """Write a line to the process's input."""
        self._child.ask(request)

    async def stop(self, within_s: float) -> Ended:
        """SIGTERM, then SIGKILL if it does not end; how it ended."""
        await self._child.stop(within_s)
        return await self._ended()

    async def _ended(self) -> Ended:
        return Ended(await self._child.wait(), self._child.log_tail())


def listening_at(address: str, module: str, settings: Settings) -> Settings:
    """The settings of a process that listens at its machine's address, at the ports that they say.

    Raises:
        ConfigError: an endpoint that is no TCP port.
    """
    match module:
        case "broker":
            broker = settings.broker
            ends = {"clients": broker.clients, "nodes": broker.nodes}
            return settings.replace(broker={key: _at(address, end) for key, end in ends.items()})
        case "nodes.trunk" if settings.trunk.direct is not None:
            return settings.replace(trunk={"direct": _at(address, settings.trunk.direct)})
        case _:
            return settings


def _at(address: str, endpoint: str) -> str:
    match = _PORT.fullmatch(endpoint)
    if match is None:
        raise ConfigError(f"{endpoint}: on Ray, expected tcp://ADDRESS:PORT; Ray says the address")
    host = f"[{address}]" if ":" in address else address
    return f"tcp://{host}:{match[1]}"
