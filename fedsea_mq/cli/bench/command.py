"""`fedsea bench ...`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsea_mq.cli import options
from fedsea_mq.cli.output import print_json, print_table

bench = typer.Typer(no_args_is_help=True, help="Measure ratios against baselines, side by side.")


@bench.callback()
def _group() -> None:
    pass


@bench.command()
def serving(
    out: Annotated[Path | None, typer.Option(help="Folder for the report and its plots.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="A comparison or ratio; may be repeated.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Paired repeats; medians count.")] = 3,
    as_json: options.AsJson = False,
) -> None:
    """Compare serving with the naive way, with the bare engine and with transformers.

    Runs for about half an hour, and wants the machine for itself.
    """
    from fedsea_mq.cli.bench.serving import chosen, run, write_report

    report = asyncio.run(run(chosen(only or []), repeats))
    if out is not None:
        write_report(report, out)
    if as_json:
        print_json(report)
    else:
        print_table("serving", ["ratio", "value", "goal", "met"], _rows(report["ratios"]))


def _rows(ratios: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            f"{ratio['value']:.3g}",
            _goal(ratio),
            {True: "yes", False: "no", None: "-"}[ratio.get("met")],
        )
        for name, ratio in ratios.items()
    ]


def _goal(ratio: dict[str, Any]) -> str:
    if "goal" not in ratio:
        return "-"
    return f"{'<=' if ratio['goal_is'] == 'at most' else '>='} {ratio['goal']:g}"
