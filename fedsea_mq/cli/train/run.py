"""A run: its processes, kept alive to the end, and what they tell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedsea_mq.cli.kept import Kept
from fedsea_mq.cli.places import Place, system_on
from fedsea_mq.cli.system import System
from fedsea_mq.cli.train.record import AGGREGATOR, RESTARTED
from fedsea_mq.errors import ConfigError
from fedsea_mq.model.writing import told_if_unwritable
from fedsea_mq.settings import Settings

# The process that spoke, and its line.
OnLine = Callable[[str, dict[str, Any]], None]


def members_of(settings: Settings) -> list[str]:
    """The names of the members that this command starts.

    With `training.member` they are those that its key may have: that name, a dot and a number.
    """
    stem = settings.training.member
    before = "member-" if stem is None else f"{stem}."
    return [f"{before}{number + 1}" for number in range(settings.training.clients)]


def run_folder(settings: Settings, *, resume: bool) -> Path:
    """Where the run's files lie.

    Raises:
        ConfigError: no run is named, or its folder is there and `resume` is not asked for.
    """
    training = settings.training
    if training.run is None:
        raise ConfigError("training.run: the run needs a name")
    folder = training.out / training.run
    if folder.exists() and not resume:
        raise ConfigError(f"{folder}: is there already; go on with --resume, or name another run")
    return folder


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other commands out of a run's folder, until this one ends or is killed.

    Raises:
        ConfigError: another command is in it.
        CheckpointError: it cannot be written.
    """
    lock = FileLock(folder / "lock", timeout=0)
    with told_if_unwritable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise ConfigError(f"{folder}: another fedsea train is at this run") from None
    try:
        yield
    finally:
        lock.release()


async def run(settings: Settings, place: Place, on_line: OnLine, *, join: bool = False) -> None:
    """Start everything, see the run through, and stop everything.

    `on_line` is told the lines of aggregator and members, and which process was started again. With
    `join`, broker and trunk are those of a running system. Processes that are killed are
    started again, and the run goes on from its last round.

    Raises:
        ProcessFailed: a process ended with an error, or was killed too often.
    """
    async with system_on(place)(settings, joins=join, trunks=1) as system:
        kept = [] if join else _servers(system, on_line)
        clients = _parties(system, on_line)
        async with asyncio.TaskGroup() as group:
            serving = [group.create_task(_keep(one)) for one in kept]
            taking_part = [group.create_task(_follow(one, on_line)) for one in clients]
            await asyncio.wait(taking_part)
            for task in serving:
                task.cancel()


def _servers(system: System[Any], on_line: OnLine) -> Sequence[Kept]:
    broker = Kept("broker", system.start_broker, _restarted(on_line))
    trunk = Kept("trunk", partial(system.start_trunk, 0), _restarted(on_line))
    broker.child, trunk.child = system.broker, system.trunks[0]
    return [broker, trunk]


def _restarted(on_line: OnLine) -> Callable[[str], None]:
    return lambda name: on_line(name, {"event": RESTARTED})


def _parties(system: System[Any], on_line: OnLine) -> Sequence[Kept]:
    def kept(name: str, module: str, **training: Any) -> Kept:
        settings = system.settings.replace(training=training)
        start = partial(system.start, module, name, settings)
        return Kept(name, start, _restarted(on_line))

    clients = [
        kept(name, "nodes.trainer", member=name, shard=number)
        for number, name in enumerate(members_of(system.settings))
    ]
    return [kept(AGGREGATOR, "nodes.aggregator", resume=True), *clients]


async def _keep(kept: Kept) -> None:
    async for _ in kept.lines():
        pass


async def _follow(kept: Kept, on_line: OnLine) -> None:
    async for line in kept.lines():
        on_line(kept.name, line)
