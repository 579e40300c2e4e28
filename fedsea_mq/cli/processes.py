"""Broker, trunk and client nodes as child processes of a command."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from fedsea_mq.cli.started import STOP_S, Started
from fedsea_mq.cli.system import System
from fedsea_mq.entry import PARENT
from fedsea_mq.settings import Settings

_TAIL_CHARS = 2000
_LINE_BYTES = 16 << 20
# Several processes share the cores: a thread that spins while it waits for the others of its
# process takes the core that they need.
_SHARING = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


class Child(Started):
    """A process on this machine."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, errors: Path) -> None:
        super().__init__(name)
        self.process = process
        self._errors = errors

    @classmethod
    async def start(
        cls,
        module: str,
        name: str,
        settings: Settings,
        folder: Path,
        *,
        working_in: Path | None = None,
    ) -> Child:
        """Start `python -m module` with these settings; does not wait until it is ready.

        Its settings and log lie in `folder`. It runs in `working_in`, or where this process does.
        """
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
                cwd=working_in,
                env=_SHARING | os.environ | {PARENT: str(os.getpid())},
                # Ctrl-C is for the command, which then stops its children in order.
                start_new_session=True,
            )
        return cls(name, process, errors)

    async def read_line(self) -> bytes:
        """Its next line as it wrote it; nothing at its end."""
        assert self.process.stdout is not None
        return await self.process.stdout.readline()

    async def wait(self) -> int:
        """Wait until it has ended: its exit status, that of a signal below 0."""
        return await self.process.wait()

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.returncode is None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def ask(self, request: dict[str, Any]) -> None:
        """Write a line to the child's input."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")

    def end_input(self) -> None:
        """No more requests."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    async def stop(self, within_s: float = STOP_S) -> int:
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


class LocalSystem(System[Child]):
    """All on this machine."""

    _folder: tempfile.TemporaryDirectory[str]

    async def __aenter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="fedsea-")
        return await super().__aenter__()

    async def _launch(self, module: str, name: str, settings: Settings) -> Child:
        return await Child.start(module, name, settings, Path(self._folder.name))

    async def __aexit__(self, *reason: object) -> None:
        await super().__aexit__(*reason)
        self._folder.cleanup()
