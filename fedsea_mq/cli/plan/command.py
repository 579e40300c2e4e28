"""The commands `fedsea plan` and `fedsea plan measure`."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Annotated, Final

import typer

from fedsea_mq.cli import options
from fedsea_mq.cli.output import console, print_json
from fedsea_mq.errors import ConfigError
from fedsea_mq.settings import Settings

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)B?", re.IGNORECASE)
_UNITS: Final = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12} | {
    f"{letter}i": 1024.0**power for power, letter in enumerate("kmgt", start=1)
}

plan = typer.Typer(
    invoke_without_command=True,
    help="Predict what each cut of a model costs, and recommend one.",
)
Model = Annotated[
    str | None,
    typer.Option(help="As model.path: embedded, a folder or a hub id; config.json will do."),
]


@plan.callback()
def plan_cuts(
    context: typer.Context,
    config: options.Config = None,
    set_: options.Overrides = None,
    model: Model = None,
    client_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="What a client process may hold: 8GB, 512MiB.")
    ] = "8GB",
    link_ms: Annotated[
        float, typer.Option(min=0, help="Client to broker and back, as ping tells it.")
    ] = 0.0,
    link_mbps: Annotated[
        float | None, typer.Option(min=0.001, help="Of that link, each way. Without: no limit.")
    ] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of a request's prompt.")] = 512,
    new: Annotated[int, typer.Option(min=1, help="New tokens of a request.")] = 128,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions that share a trunk node.")] = 16,
    audit: Annotated[
        Path | None,
        typer.Option(help="report.json of fedsea audit. The embedded model comes with one."),
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Of a trunk node, in any currency.")
    ] = None,
    speed: Annotated[
        Path | None,
        typer.Option(help="Of the trunk node, by fedsea plan measure there. Without: as here."),
    ] = None,
    client_speed: Annotated[
        Path | None, typer.Option(help="Of the client. Without, this machine is measured.")
    ] = None,
    max_slowdown: Annotated[
        float, typer.Option(min=1, help="Accepted of a cut, over the TPOT of the fastest.")
    ] = 1.5,
    every: Annotated[
        bool, typer.Option("--all", help="Print every cut, not only those that none beats.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Predict what each cut of a model costs, and recommend one.

    Weights are not read, but to know a model that was audited. Exits 1 if no cut fits.
    """
    if context.invoked_subcommand is not None:
        return
    from fedsea_mq.cli.plan.page import as_rows, print_plan
    from fedsea_mq.cli.plan.planner import Wanted, make_plan
    from fedsea_mq.load.plan import Link
    from fedsea_mq.planning.forecast import Demand

    wanted = Wanted(
        Demand(prompt, new, sessions),
        Link(delay_ms=link_ms / 2, mbps=link_mbps),
        client_memory=as_bytes(client_memory),
        max_slowdown=max_slowdown,
        audit=audit,
    )
    settings = _settings(config, set_, model)
    made = asyncio.run(make_plan(settings, wanted, speed, client_speed))
    if as_json:
        print_json(as_rows(made, price_per_hour))
    else:
        print_plan(made, price_per_hour, every=every)
    if made.recommendation is None:
        raise typer.Exit(1)


@plan.command()
def measure(
    config: options.Config = None,
    set_: options.Overrides = None,
    model: Model = None,
    out: Annotated[Path, typer.Option(help="The file to write, for --speed.")] = Path("speed.json"),
    as_json: options.AsJson = False,
) -> None:
    """Measure how fast this machine runs blocks of a model's size, and a system of processes.

    Takes about half a minute of a machine at rest, and memory for three blocks and the vocabulary
    in two processes.
    """
    from fedsea_mq.cli.plan.measure import measure as run
    from fedsea_mq.model.checkpoint import read_config

    settings = _settings(config, set_, model)
    found = asyncio.run(run(read_config(settings.model.path), settings))
    found.write(out)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        console.print(f"written to {out}", markup=False)


def _settings(config: Path | None, set_: list[str] | None, model: str | None) -> Settings:
    settings = options.quiet(config, set_)
    return settings if model is None else settings.replace(model={"path": model})


def as_bytes(text: str) -> int:
    """`8GB` or `512MiB` as bytes; GB are powers of ten, GiB of two. Raises `ConfigError`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"size {text!r}: expected a number and a unit, as 8GB or 512MiB")
    return round(float(match[1]) * _UNITS[match[2].lower()])
