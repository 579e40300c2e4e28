"""`fedsea train`: a federated run on this machine, from its start to its adapters."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.live import Live

from fedsea_mq.cli.output import console, print_table, progress_console
from fedsea_mq.cli.train.plots import plot_run
from fedsea_mq.cli.train.record import RunRecord
from fedsea_mq.cli.train.run import AGGREGATOR, Watchers, run, run_folder
from fedsea_mq.cli.train.tensorboard import EventFiles
from fedsea_mq.cli.train.view import RunView
from fedsea_mq.model.adapters import merge_adapters
from fedsea_mq.settings import Settings


async def train(settings: Settings, *, resume: bool, join: bool, as_json: bool) -> None:
    """Train, with live progress; write adapters, report and plots into the run's folder."""
    record, begun = RunRecord(), time.monotonic()
    folder = run_folder(settings, resume=resume)
    with EventFiles(folder / "tensorboard", settings.federation.local_steps) as files:

        def on_line(name: str, line: dict[str, Any]) -> None:
            if name == AGGREGATOR:
                record.aggregator_line(line)
                files.aggregator_line(line)
            else:
                record.member_line(name, line)
                files.member_line(name, line)
            if as_json and "event" in line:
                sys.stdout.write(json.dumps({"process": name, **line}) + "\n")
                sys.stdout.flush()

        view = RunView(settings, record)
        live = Live(view, console=progress_console, transient=True, refresh_per_second=4)
        with live:
            await run(settings, Watchers(on_line, record.restarted), join=join)
    report = {**record.as_json(), "seconds": time.monotonic() - begun}
    _write(folder, record, report)
    if as_json:
        sys.stdout.write(json.dumps({"event": "report", **report}) + "\n")
    else:
        progress_console.print(view)
        _print(folder, report)


def _write(folder: Path, record: RunRecord, report: dict[str, Any]) -> None:
    """`run.json`, `run.png`, and the parts' adapters as one, where all of them are here."""
    (folder / "run.json").write_text(json.dumps(report, indent=2) + "\n")
    plot_run(record, folder / "run.png")
    parts = [folder / "head", folder / "trunk" / "adapter", folder / "tail"]
    here = [part for part in parts if part.exists()]
    if here:
        merge_adapters(here, folder / "merged")


def _print(folder: Path, report: dict[str, Any]) -> None:
    rows = [(str(said["round"] + 1), f"{said['loss']:.4f}") for said in report["rounds"]]
    print_table("rounds", ["round", "mean loss"], rows)
    console.print(
        f"{report['samples']} samples in {report['seconds']:.0f} s; "
        f"{report['bytes_up'] / 1e6:.1f} MB up, {report['bytes_down'] / 1e6:.1f} MB down"
    )
    console.print(f"adapters, report and plots: {folder}")
