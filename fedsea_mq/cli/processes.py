"""Broker, trunk and client nodes as child processes of a command."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from fedsea_mq.entry import PARENT
from fedsea_mq.errors import ProcessFailed
from fedsea_mq.settings import Settings
from fedsea_mq.transport.status import StatusWatch

# A large checkpoint is hashed and read first.
_READY_S = 900.0
_STOP_S = 15.0
_TAIL_CHARS = 2000
_LINE_BYTES = 16 << 20
# Several processes share the cores: a thread that spins while it waits for the others of its
# process takes the core that they need.
_SHARING = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


class Child:
    """One process that speaks JSON lines; the first says that it is ready."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, errors: Path) -> None:
        self.name = name
        self.process = process
        self._errors = errors
        self.ready: dict[str, Any] = {}

    @classmethod
    async def start(cls, module: str, name: str, settings: Settings, folder: Path) -> Child:
        """Start `python -m module` with these settings; does not wait until it is ready."""
        file, errors = folder / f"{name}.yaml", folder / f"{name}.log"
        settings.write(file)
        with errors.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                "--config",
                str(file),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=_LINE_BYTES,
                env=_SHARING | os.environ | {PARENT: str(os.getpid())},
                # Ctrl-C is for the command, which then stops its children in order.
                start_new_session=True,
            )
        return cls(name, process, errors)

    async def wait_ready(self) -> dict[str, Any]:
        """The child's first line.

        Raises:
            ProcessFailed: it ended first, or took too long; with the end of its log.
        """
        try:
            async with asyncio.timeout(_READY_S):
                self.ready = await self.line()
        except TimeoutError:
            raise ProcessFailed(f"{self.name} was not ready within {_READY_S:g} s") from None
        return self.ready

    async def line(self) -> dict[str, Any]:
        """The child's next line. Raises `ProcessFailed` at its end."""
        assert self.process.stdout is not None
        raw = await self.process.stdout.readline()
        if not raw:
            status = await self.process.wait()
            raise ProcessFailed(f"{self.name} ended with status {status}: {self.log_tail()}")
        line: dict[str, Any] = json.loads(raw)
        return line

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        """Every line until the child closes its output."""
        assert self.process.stdout is not None
        async for raw in self.process.stdout:
            if raw.endswith(b"\n"):  # a child that was killed may end within a line
                yield json.loads(raw)

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.returncode is None

    def ask(self, request: dict[str, Any]) -> None:
        """Write a line to the child's input."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")

    def end_input(self) -> None:
        """No more requests."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    async def stop(self, within_s: float = _STOP_S) -> int:
        """SIGTERM, then SIGKILL for a child that does not end; its exit status."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.terminate()
            try:
                async with asyncio.timeout(within_s):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
        return await self.process.wait()

    def log(self) -> str:
        """What the child has logged."""
        return self._errors.read_text(errors="replace")

    def log_tail(self) -> str:
        """The end of it."""
        return self.log()[-_TAIL_CHARS:].strip() or "no log"


def _on_free_ports(settings: Settings) -> Settings:
    """The same, beside whatever else runs on this machine."""
    free = "tcp://127.0.0.1:*"
    direct = None if settings.trunk.direct is None else free
    return settings.replace(broker={"clients": free, "nodes": free}, trunk={"direct": direct})


class LocalSystem:
    """A broker and trunk nodes on free ports of this machine. Use with `async with`.

    With `joins` it starts neither, and its clients use the broker of the settings; raises
    `PeerUnreachable` on entry if that does not answer. `settings` is the given settings with the
    endpoints that the broker really listens on. Metrics, if there are to be any, are shown on
    ports of their own: with `keep_endpoints` from that of the settings on, in the order in which
    processes are started; else on any that are free.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        keep_endpoints: bool = False,
        joins: bool = False,
        trunks: int | None = None,
    ) -> None:
        self._joins = joins
        self._keeps_ports = keep_endpoints
        all_stages = settings.trunk.nodes * settings.trunk.stages
        self._trunks = all_stages if trunks is None else trunks
        self.settings = settings if keep_endpoints or joins else _on_free_ports(settings)
        self._folder = tempfile.TemporaryDirectory(prefix="fedsea-")
        self._children: list[Child] = []
        self.broker: Child
        self.trunks: list[Child] = []

    async def __aenter__(self) -> Self:
        if self._joins:
            async with StatusWatch(self.settings.broker, self.settings.security) as watch:
                await watch.report()  # before anything is started that would wait for long
            return self
        try:
            ready = await (await self.start_broker()).wait_ready()
            self.settings = self.settings.replace(
                broker={"clients": ready["clients"], "nodes": ready["nodes"]}
            )
            for number in range(self._trunks):
                await self.start_trunk(number)
            await asyncio.gather(*(trunk.wait_ready() for trunk in self.trunks))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def start_broker(self) -> Child:
        """Start the broker, or another in its place; does not wait until it is ready."""
        self.broker = await self.start("broker", "broker")
        return self.broker

    async def start_trunk(self, number: int) -> Child:
        """Start one more trunk node; does not wait until it is ready."""
        trunk, stages = self.settings.trunk, self.settings.trunk.stages
        name = f"{trunk.name or 'trunk'}-{number}"
        # Of each chain the first stage first.
        stage = {} if stages == 1 else {"stages": 1, "blocks": f"{number % stages + 1}/{stages}"}
        own = self.settings.replace(trunk={"name": name, **stage})
        started = await self.start("nodes.trunk", name, own)
        self.trunks.append(started)
        return started

    async def start_client(self, name: str) -> Child:
        """Start a client node process; does not wait until it is ready."""
        return await self.start("nodes.client", name)

    async def start_load(self, name: str) -> Child:
        """Start a process of simulated clients; does not wait until it is ready."""
        return await self.start("nodes.load", name)

    async def start(self, module: str, name: str, settings: Settings | None = None) -> Child:
        """Start `python -m module`, by default with the system's settings."""
        own = self._with_own_port(settings or self.settings)
        child = await Child.start(module, name, own, Path(self._folder.name))
        self._children.append(child)
        return child

    def _with_own_port(self, settings: Settings) -> Settings:
        first = settings.metrics.port
        if not first:
            return settings
        port = first + len(self._children) if self._keeps_ports else 0
        return settings.replace(metrics={"port": port})

    async def first_failure(self) -> str:
        """Wait until any child ends, and say which and why."""
        waits = {asyncio.create_task(c.process.wait()): c for c in (self.broker, *self.trunks)}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            ended = waits[done.pop()]
            return f"{ended.name} ended with {ended.process.returncode}: {ended.log_tail()}"
        finally:
            for wait in waits:
                wait.cancel()

    async def __aexit__(self, *_: object) -> None:
        # Clients, then trunks, then the broker: each says goodbye to one that still listens.
        first = [c for c in self._children if c not in self.trunks and c is not self._broker]
        within_s = _STOP_S + self.settings.trunk.drain_s
        for group in (first, self.trunks, [self._broker] if self._broker else []):
            await asyncio.gather(*(child.stop(within_s) for child in group))
        self._folder.cleanup()

    @property
    def children(self) -> list[Child]:
        """Every process that was started, ended ones too."""
        return list(self._children)

    @property
    def _broker(self) -> Child | None:
        return getattr(self, "broker", None)
