"""`fedsea train`: a federated run, from its start to its adapters."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from rich.live import Live

from fedsea_mq.cli.output import console, print_table, progress_console
from fedsea_mq.cli.places import Place
from fedsea_mq.cli.train.journal import Journal
from fedsea_mq.cli.train.record import RunRecord
from fedsea_mq.cli.train.results import write_results
from fedsea_mq.cli.train.run import OnLine, alone_in, members_of, run, run_folder
from fedsea_mq.cli.train.tensorboard import EventFiles
from fedsea_mq.cli.train.view import RunView
from fedsea_mq.settings import Settings
from nodes.trainer.examples import check_shards

# All processes of a run, from their start to their end.
SeeThrough = Callable[[OnLine], Awaitable[None]]


async def train(
    settings: Settings, place: Place, *, resume: bool, join: bool, as_json: bool
) -> None:
    """Train, with live progress; write adapters, report and plots into the run's folder.

    Raises what `run_folder`, `alone_in`, `check_shards` and `run` raise. A folder that was made for
    a run which then did not take a step is removed: the next try, with other settings, is a new
    run.
    """
    folder, record = run_folder(settings, resume=resume), RunRecord()
    is_new = not folder.exists()

    async def see_through(on_line: OnLine) -> None:
        await run(settings, place, on_line, join=join)

    with alone_in(folder):
        try:
            await _train(settings, folder, record, see_through, as_json=as_json)
        except BaseException:
            if is_new and not record.began:
                shutil.rmtree(folder, ignore_errors=True)
            raise


async def _train(
    settings: Settings, folder: Path, record: RunRecord, see_through: SeeThrough, *, as_json: bool
) -> None:
    begun = time.monotonic()
    tensorboard = EventFiles(folder / "tensorboard", settings.federation.local_steps)
    with Journal(folder / "lines.jsonl") as journal, tensorboard:
        for name, line in journal.read():
            record.line(name, line)

        def on_line(name: str, line: dict[str, Any]) -> None:
            if "event" not in line:
                return
            journal.write(name, line)
            record.line(name, line)
            tensorboard.line(name, line)
            if as_json:
                sys.stdout.write(json.dumps({"process": name, **line}) + "\n")
                sys.stdout.flush()

        view = RunView(settings, record)
        live = Live(view, console=progress_console, transient=True, refresh_per_second=4)
        with live:
            if not record.finished >= set(members_of(settings)):
                await asyncio.to_thread(check_shards, settings.training)
                await see_through(on_line)
    report = {**record.as_json(), "seconds": time.monotonic() - begun}
    write_results(folder, settings, record, report)
    if as_json:
        sys.stdout.write(json.dumps({"event": "report", **report}) + "\n")
    else:
        progress_console.print(view)
        _print(folder, report)


def _print(folder: Path, report: dict[str, Any]) -> None:
    rows = [(str(said["round"] + 1), f"{said['loss']:.4f}") for said in report["rounds"]]
    print_table("rounds", ["round", "mean loss"], rows)
    console.print(
        f"{report['samples']} samples, {report['seconds']:.0f} s this time; "
        f"{report['bytes_up'] / 1e6:.1f} MB up, {report['bytes_down'] / 1e6:.1f} MB down"
    )
    console.print(f"adapters, report and plots: {folder}")
