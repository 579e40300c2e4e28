"""The command that hands out the configurations that come with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from fedsea_mq.cli.output import console
from fedsea_mq.errors import ConfigError


def configs(
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("configs"),
) -> None:
    """Write the example configurations into a folder; nothing is overwritten."""
    samples = sorted((files("fedsea_mq") / "configs").iterdir(), key=lambda one: one.name)
    there = [sample.name for sample in samples if (out / sample.name).exists()]
    if there:
        raise ConfigError(f"{out}: {', '.join(there)} there already, and not overwritten")
    out.mkdir(parents=True, exist_ok=True)
    for sample in samples:
        (out / sample.name).write_bytes(sample.read_bytes())
        console.print(str(out / sample.name), soft_wrap=True)
