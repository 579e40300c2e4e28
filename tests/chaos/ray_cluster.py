"""A Ray cluster of several machines that are all this one, and `fedsea up` on it, with keys."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from fedsea_mq.protocol.messages import StatusReport
from fedsea_mq.security.identity import Party
from fedsea_mq.settings import Settings
from fedsea_mq.transport.status import StatusWatch
from tests.integration.keys import Keys

ROOT = Path(__file__).parents[2]
FAST = [
    "broker.clients=tcp://127.0.0.1:*",
    "broker.nodes=tcp://127.0.0.1:*",
    "broker.heartbeat_ms=200",
    "broker.timeout_ms=2000",
    "client.request_timeout_s=1",
    "client.give_up_s=60",
    "noise.mode=off",
    "client.wire_dtype=fp32",
    "log.level=warning",
    "ray.cpus=0.5",
    "ray.interval_s=0.5",
]


@dataclass(slots=True)
class Machines:
    """The cluster, whose nodes can be taken away as a power cut does."""

    cluster: Cluster
    workers: list[Any] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def process_of(self, name: str) -> psutil.Process:
        """The process of this name, on whichever machine."""
        return next(one for one in self.ours if _is_called(one, name))

    @property
    def ours(self) -> list[psutil.Process]:
        """The processes that Ray runs for us, on whichever machine."""
        every = [self.cluster.head_node, *self.workers]
        return [p for worker in every for p in _processes_of(worker) if _is_ours(p)]

    def add(self) -> None:
        self.workers.append(self.cluster.add_node(num_cpus=2))

    def holder_of(self, name: str) -> Any:
        """The machine on which the process of this name runs."""
        return next(
            worker
            for worker in self.workers
            for process in _processes_of(worker)
            if _is_called(process, name)
        )

    def cut_power_of(self, worker: Any) -> None:
        """All that runs there ends at once, and says nothing."""
        doomed = _processes_of(worker)
        for process in doomed:
            process.suspend()  # so that none has time to see another one die
        for process in doomed:
            process.kill()
        self.cluster.remove_node(worker, allow_graceful=False)
        self.workers.remove(worker)


def _processes_of(worker: Any) -> list[psutil.Process]:
    raylet = psutil.Process(worker.all_processes["raylet"][0].process.pid)
    return [process for process in raylet.children(recursive=True) if process.is_running()]


@contextmanager
def machines(workers: int) -> Iterator[Machines]:
    """A head, on which the command and the broker are, and so many others."""
    head = {"num_cpus": 0, "include_dashboard": False}
    made = Machines(Cluster(initialize_head=True, head_node_args=head))
    try:
        for _ in range(workers):
            made.add()
        yield made
    finally:
        made.cluster.shutdown()


def keyed_settings(folder: Path, *overrides: str) -> Settings:
    """One key for all parties: Ray's machines have addresses, where nothing is said in clear."""
    keys = Keys.of(folder)
    for party in Party:
        keys.trust.add(party, "site", keys.public("broker"))
    return keys.settings(Settings.load(None, [*FAST, *overrides]), "broker")


@dataclass(slots=True)
class Up:
    """`fedsea up --on ray`, and the settings of its clients."""

    process: asyncio.subprocess.Process
    settings: Settings
    watch: StatusWatch

    async def until(
        self, condition: Callable[[StatusReport], bool], seconds: float = 60.0
    ) -> StatusReport:
        """Wait until the broker's report is so."""
        async with asyncio.timeout(seconds):
            while not condition(report := await self.watch.report()):
                await asyncio.sleep(0.1)
        return report


@asynccontextmanager
async def up_on_ray(
    cluster: Machines, settings: Settings, folder: Path, status: int = 0
) -> AsyncIterator[Up]:
    """The command's process until the test is over; it must end so, and leave nothing."""
    config = folder / "up.yaml"
    settings.write(config)
    arguments = ("up", "--on", "ray", "--address", cluster.address, "--config", str(config))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fedsea_mq.cli", *arguments),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        said = await _until_ready(process)
        at = {side: said[f"broker for {side}"] for side in ("clients", "nodes")}
        reached = settings.replace(broker=at)
        async with StatusWatch(reached.broker, reached.security) as watch:
            yield Up(process, reached, watch)
    finally:
        left = cluster.ours
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        ended_with = await process.wait()
    assert ended_with == status
    assert not await still_running(left)


async def _until_ready(process: asyncio.subprocess.Process) -> dict[str, str]:
    """What it said before: of each thing, where it listens."""
    assert process.stdout is not None
    said: dict[str, str] = {}
    async for raw in process.stdout:
        line = raw.decode().strip()
        if line.startswith("ready"):
            return said
        name, _, endpoint = line.rpartition(" ")
        said[name.strip()] = endpoint
    raise AssertionError("fedsea up ended before it was ready")


async def still_running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that do not end within a while; who has ended and was not asked for its status, has."""
    with suppress(TimeoutError):
        async with asyncio.timeout(30):
            while any(map(_runs, processes)):
                await asyncio.sleep(0.1)
    return [process for process in processes if _runs(process)]


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_ours(process: psutil.Process) -> bool:
    return any(argument in {"broker", "nodes.trunk"} for argument in _arguments(process))


def _is_called(process: psutil.Process, name: str) -> bool:
    return any(argument.endswith(f"/{name}.yaml") for argument in _arguments(process))


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []  # it has ended
