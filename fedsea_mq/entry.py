"""What every process does at its edge: arguments, logging, signals. Library code never does."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import logging
import os
import resource
import secrets
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

import structlog

from fedsea_mq.errors import FedSeaError, StepStuck
from fedsea_mq.settings import LogSettings, Settings

# In the environment: the process id of the parent without which a process is to end.
PARENT: Final = "FEDSEA_PARENT"


def settings_from_arguments(description: str, arguments: list[str] | None = None) -> Settings:
    """Read `--config FILE` and any number of `--set section.key=value`; exits 2 on a bad one."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", type=Path, help="YAML file; see configs/")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a key"
    )
    given = parser.parse_args(arguments)
    try:
        return Settings.load(given.config, given.set)
    except FedSeaError as error:
        parser.exit(2, f"{type(error).__name__}: {error}\n")


def configure_logging(settings: LogSettings) -> None:
    """Log to standard error, for people or as JSON lines."""
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if settings.format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            # The default one prints local variables: states and tokens.
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.ExtraAdder(),
                structlog.processors.TimeStamper(fmt="iso"),
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
            ],
        )
    )
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)
    for noisy in ("httpx", "filelock", "urllib3", "asyncio", "uvicorn"):
        logging.getLogger(noisy).setLevel("WARNING")


def run_process(main: Coroutine[Any, Any, None], settings: Settings) -> int:
    """Configure logging and run `main` to its end; the exit status."""
    configure_logging(settings.log)
    # What was imported stays: a collection that looks at all of it takes a third of a second, in
    # which nobody is answered.
    gc.freeze()
    errors: list[BaseException] = []
    try:
        asyncio.run(main)
    except* FedSeaError as group:
        errors = leaves(group)
        for error in errors:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        if any(isinstance(error, StepStuck) for error in errors):
            _end_now(1)  # Python's own end would wait for the thread
    return 1 if errors else 0


def _end_now(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def allow_many_connections() -> None:
    """Raise the number of files that this process may have open as far as it may be raised."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS names more than it allows
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def begin_peer_numbers_anywhere() -> None:
    """Seed C's `rand`, from which libzmq takes the first of the numbers that it gives its peers.

    For processes that listen. Nobody else seeds it, so it would be the same in every process; and
    libzmq 4.3 aborts the process if a peer has claimed the number that comes up (see
    docs/privacy.md).
    """
    ctypes.CDLL(None).srand(secrets.randbits(32))


def leaves(error: BaseException) -> list[BaseException]:
    """The single exceptions that an exception or a nest of groups is made of."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


def announce(**facts: object) -> None:
    """One JSON line on standard output, for whoever started this process."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


async def ready_unless_asked(ready: Coroutine[Any, Any, None]) -> bool:
    """Wait until a node is `ready`; False if `stop_asked` says so first. Raises as `ready` does."""
    starting, asked = asyncio.create_task(ready), asyncio.create_task(stop_asked())
    try:
        await asyncio.wait((starting, asked), return_when=asyncio.FIRST_COMPLETED)
        return starting.done() and starting.result() is None
    finally:
        starting.cancel()
        asked.cancel()


async def stop_asked() -> None:
    """Wait for SIGTERM or SIGINT, or for the parent that started this process to die."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # Told by whoever started this process: asked for here, the parent might be gone already.
    parent = os.environ.get(PARENT)
    while not stop.is_set():
        try:
            await asyncio.wait_for(stop.wait(), 1.0)
        except TimeoutError:
            if parent is not None and str(os.getppid()) != parent:
                return  # orphaned: a killed `fedsea up` must leave nothing behind
