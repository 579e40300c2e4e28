"""`fedsea train`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from fedsea_mq.cli import options
from fedsea_mq.cli.places import Place


def train(
    config: options.Config = None,
    set_: options.Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was stopped.")
    ] = False,
    join: Annotated[
        bool, typer.Option("--join", help="Use the running broker and trunk of the settings.")
    ] = False,
    on: options.On = Place.LOCAL,
    address: options.RayAddress = None,
    as_json: options.AsJson = False,
) -> None:
    """Fine-tune by split LoRA, federated over clients that are all started here, or on Ray."""
    from fedsea_mq.cli.train.command import train as run

    settings = options.on_cluster(options.quiet(config, set_), address)
    asyncio.run(run(settings, on, resume=resume, join=join, as_json=as_json))
