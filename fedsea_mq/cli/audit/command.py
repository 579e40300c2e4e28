"""The command `fedsea audit`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsea_mq.cli import options
from fedsea_mq.cli.output import console, json_text, print_json, print_table, progress_bar
from fedsea_mq.entry import configure_logging
from fedsea_mq.errors import ConfigError
from fedsea_mq.settings import Settings


def audit(
    config: options.Config = None,
    set_: options.Overrides = None,
    quick: Annotated[bool, typer.Option("--quick", help="One cut, two noises, few texts.")] = False,
    sigma: Annotated[
        str | None, typer.Option(help="Noise over the head output's RMS, as 0,0.5,1.")
    ] = None,
    cut: Annotated[str | None, typer.Option(help="Head and tail blocks, as 1+1,2+1.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Whose texts are attacked; may be repeated.")
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="Adapters, in peft's format, that client and trunk run with."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report and plots; what it has is not found again."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Attack what a trunk really receives, and say what was recovered, beside what noise costs."""
    import torch

    from fedsea_mq.cli.audit.grid import FULL, QUICK, audit_beside
    from fedsea_mq.cli.audit.page import page
    from fedsea_mq.cli.audit.plots import plot_audit
    from fedsea_mq.cli.audit.report import (
        COLUMNS,
        TRAINING,
        UNSAID,
        by_setting,
        cells,
        report,
        training_cells,
    )

    settings = Settings.load(config, set_ or [], ["log.level=warning"])
    configure_logging(settings.log)
    torch.set_num_threads(settings.model.threads)
    grid = QUICK if quick else FULL
    if adapter is not None:
        grid = replace(grid, adapter=adapter, noise_aware_at=())
    if sigma is not None:
        grid = replace(grid, scales=options.each(sigma, float))
    if cut is not None:
        grid = replace(grid, cuts=options.each(cut, options.as_cut))
    if task:
        grid = replace(grid, tasks=task)
    if out is not None:
        _make(out)
    rows = asyncio.run(_rows(settings, grid, out))
    beside = asyncio.run(audit_beside(settings, grid, out))
    told = report(rows, beside)
    if out is not None:
        (out / "report.json").write_text(json_text(told))
        plots = plot_audit(rows, out)
        (out / "report.md").write_text(page(told, rows, [file.name for file in plots]))
    if as_json:
        print_json(told)
        return
    for title, here in by_setting(rows):
        print_table(title, COLUMNS, map(cells, here))
    print_table("training", TRAINING, training_cells(told["training"]))
    chosen = told["recommended"]
    console.print(UNSAID if chosen is None else chosen["risk"], markup=False)


def _make(folder: Path) -> None:
    """Before minutes are spent on what could not be kept there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"--out {folder}: may not be written")


async def _rows(settings: Settings, grid: Any, out: Path | None) -> Sequence[dict[str, Any]]:
    from fedsea_mq.cli.audit.grid import audit as run
    from fedsea_mq.cli.audit.grid import cells_of

    rows: list[dict[str, Any]] = []
    with progress_bar() as progress:
        task = progress.add_task("settings", total=cells_of(grid, settings.noise))
        async for found in run(settings, grid, out):
            rows += found
            progress.advance(task)
    return rows
