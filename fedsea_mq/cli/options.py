"""The options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    Path | None, typer.Option("--config", help="YAML file with settings; see configs/.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1)]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy.")]
TopK = Annotated[int, typer.Option(min=0, help="0 is off.")]
TopP = Annotated[float, typer.Option(help="Above 0; 1 is off.")]
RepetitionPenalty = Annotated[float, typer.Option(min=0.01, help="1 is off.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the sampling, never of the noise.")]
Adapter = Annotated[
    str | None, typer.Option(metavar="NAME", help="One of client.adapters, for all that is asked.")
]
Stop = Annotated[list[str] | None, typer.Option(help="Stop string; may be repeated.")]
