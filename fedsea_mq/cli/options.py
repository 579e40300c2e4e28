"""The options that commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from fedsea_mq.cli.places import Place
from fedsea_mq.errors import ConfigError
from fedsea_mq.settings import Settings

T = TypeVar("T")

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
Count = Annotated[int, typer.Option("--n", min=1, help="Examples of a task.")]
Stop = Annotated[list[str] | None, typer.Option(help="Stop string; may be repeated.")]


On = Annotated[Place, typer.Option("--on", help="Where processes are started.")]
RayAddress = Annotated[
    str | None, typer.Option("--address", help="HOST:PORT of the Ray cluster; see ray.address.")
]


def each(listed: str, read: Callable[[str], T]) -> list[T]:
    """What a comma-separated list says. Raises `ConfigError`."""
    try:
        return [read(one) for one in listed.split(",")]
    except ValueError:
        raise ConfigError(
            f"{listed!r}: expected a comma-separated list as the help shows"
        ) from None


def as_cut(text: str) -> tuple[int, int]:
    """`1+2` as head and tail blocks. Raises `ValueError`."""
    head, tail = (int(blocks) for blocks in text.split("+"))
    return head, tail


def quiet(config: Path | None, overrides: list[str] | None) -> Settings:
    """Settings of a command that prints results: logs only what went wrong, unless asked."""
    return Settings.load(config, overrides or [], ["log.level=warning"])


def on_cluster(settings: Settings, address: str | None) -> Settings:
    """The settings with this Ray cluster, if one is named."""
    return settings if address is None else settings.replace(ray={"address": address})


def with_adapter(settings: Settings, name: str | None) -> Settings:
    """The settings with every session through this adapter, if one is named."""
    return settings if name is None else settings.replace(client={"adapter": name})
