"""The command `fedsea chaos`."""

from __future__ import annotations

import asyncio
import sys
from enum import StrEnum
from random import Random
from typing import Annotated, Any

import typer

from fedsea_mq.cli import options
from fedsea_mq.cli.output import print_json
from fedsea_mq.entry import configure_logging
from fedsea_mq.settings import Settings


class Section(StrEnum):
    """What a run of the command is made of."""

    SIMULATED = "simulated"
    FAULTS = "faults"
    ATTACKS = "attacks"


def chaos(
    quick: Annotated[
        bool, typer.Option("--quick", help="200 seeds, 10 faults, attacks of 2 s.")
    ] = False,
    only: Annotated[
        list[Section] | None, typer.Option(help="This section alone; may be repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Systems to simulate.")] = 1000,
    first: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Repeat this one, and print all that happens.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Processes to simulate in.")] = 1,
    faults: Annotated[int, typer.Option(min=1, help="Faults in real processes.")] = 200,
    config: options.Config = None,
    set_: options.Overrides = None,
    as_json: options.AsJson = False,
) -> None:
    """See that all promises hold under faults and attacks.

    First in simulated systems, each drawn from its seed; then in real processes, which are killed,
    frozen, drained and cut off while clients generate; then in a system with keys, under attack.
    """
    from fedsea_mq.cli.chaos import simulated_report
    from fedsea_mq.cli.chaos.attacks import siege
    from fedsea_mq.cli.chaos.attacks.siege import withstand
    from fedsea_mq.cli.chaos.live import report as live_report
    from fedsea_mq.cli.chaos.live.ordeal import DEFAULTS, FULL, QUICK, endure

    if seed is not None:
        sys.exit(0 if simulated_report.repeat(seed, as_json=as_json) else 1)
    told: dict[str, Any] = {}
    held = True
    sections = only or list(Section)
    settings = Settings.load(config, set_ or [], DEFAULTS)
    if {Section.FAULTS, Section.ATTACKS} & set(sections):
        configure_logging(settings.log)
    if Section.SIMULATED in sections:
        count = simulated_report.QUICK_SEEDS if quick else seeds
        simulated = simulated_report.run_simulated(range(first, first + count), jobs)
        told["simulated"], held = simulated.as_json(), held and not simulated.broken
        if not as_json:
            simulated_report.show(simulated)
    if Section.FAULTS in sections:
        scale = QUICK if quick else FULL.with_faults(faults)
        endured = asyncio.run(endure(settings, scale, Random()))
        told["faults"], held = endured.as_json(), held and endured.held
        if not as_json:
            live_report.show(endured)
    if Section.ATTACKS in sections:
        withstood = asyncio.run(withstand(settings, seconds=2.0 if quick else 10.0))
        told["attacks"], held = withstood.as_json(), held and withstood.held
        if not as_json:
            siege.show(withstood)
    if as_json:
        print_json(told)
    sys.exit(0 if held else 1)
