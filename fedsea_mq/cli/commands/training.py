"""`fedsea train`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from fedsea_mq.cli import options


def train(
    config: options.Config = None,
    set_: options.Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was stopped.")
    ] = False,
    join: Annotated[
        bool, typer.Option("--join", help="Use the running broker and trunk of the settings.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Fine-tune by split LoRA, federated over clients that are all started here."""
    from fedsea_mq.cli.train.command import train as run

    asyncio.run(run(options.quiet(config, set_), resume=resume, join=join, as_json=as_json))
