"""What `fedsea train` leaves beside the parties' own files: report, plots, merged adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedsea_mq.cli.train.plots import plot_run
from fedsea_mq.cli.train.record import RunRecord
from fedsea_mq.cli.train.run import members_of
from fedsea_mq.model.adapters import AdapterFolder, merge_adapters
from fedsea_mq.settings import Settings


def write_results(
    folder: Path, settings: Settings, record: RunRecord, report: dict[str, Any]
) -> None:
    """`run.json`, `run.png`, and the parts' adapters as one, where all of them are here.

    With personal adapters each member has its own head and tail, and so its own whole.

    Raises:
        AdapterError: parts that are not of one set, as of two runs of one name.
    """
    (folder / "run.json").write_text(json.dumps(report, indent=2) + "\n")
    plot_run(record, folder / "run.png")
    owners = [folder]
    if settings.federation.personal:
        owners = [folder / "members" / member for member in members_of(settings)]
    for owner in owners:
        parts = [owner / "head", folder / "trunk" / "adapter", owner / "tail"]
        _merge([part for part in parts if part.exists()], owner / "merged")


def _merge(parts: list[Path], out: Path) -> None:
    """Unless some are on other machines."""
    opened = [AdapterFolder.open(part) for part in parts]
    here = {block for one in opened for block in one.blocks}
    if here and all(one.adapter_set().blocks <= here for one in opened):
        merge_adapters(parts, out)
