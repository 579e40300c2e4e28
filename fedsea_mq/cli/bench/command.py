"""`fedsea bench ...`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fedsea_mq.cli import options
from fedsea_mq.cli.output import console, print_json, print_table

if TYPE_CHECKING:
    from fedsea_mq.cli.bench.comparison import Comparison

# Spelt out: to import the comparisons takes seconds, which the help of every command would.
_NAMES: Final = (
    "floors, int8, batching, resending, transformers, relaying, direct, sealing, prefill, "
    "fairness, speculating, sustained"
)
bench = typer.Typer(no_args_is_help=True, help="Measure ratios against baselines, side by side.")


@bench.callback()
def _group() -> None:
    pass


@bench.command()
def serving(
    out: Annotated[Path | None, typer.Option(help="Folder for the report and its plot.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"A ratio, or one of {_NAMES}; may be repeated. Slow ones only so."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Paired repeats; medians count.")] = 3,
    as_json: options.AsJson = False,
) -> None:
    """Compare serving with the naive way, with the bare engine and with transformers.

    Runs for about half an hour, and wants the machine for itself. The plot is of the comparisons
    resending and batching.
    """
    from fedsea_mq.cli.bench.serving import chosen, run, write_report

    report = asyncio.run(run(chosen(only or []), repeats))
    if out is not None:
        write_report(report, out)
    if as_json:
        print_json(report)
    else:
        print_report(report, "serving")


@bench.command(name="train-parity")
def train_parity(
    steps: Annotated[int, typer.Option(min=20, help="Optimiser steps of each client.")] = 200,
    as_json: options.AsJson = False,
) -> None:
    """Compare split training with peft on the unsplit model, for each strategy.

    Exits 1 if losses or final adapters differ by more than a thousandth.
    """
    from fedsea_mq.cli.bench.train_parity import train_parity as run

    found = {strategy: asdict(one) for strategy, one in asyncio.run(run(steps)).items()}
    if as_json:
        print_json(found)
    else:
        rows = [
            (name, f"{one['max_rel_loss_diff']:.1e}", f"{one['max_rel_adapter_diff']:.1e}")
            for name, one in found.items()
        ]
        print_table(
            f"split against unsplit, {steps} steps", ["strategy", "losses", "adapters"], rows
        )
    if any(
        max(one["max_rel_loss_diff"], one["max_rel_adapter_diff"]) > 1e-3 for one in found.values()
    ):
        raise typer.Exit(1)


@bench.command(name="train-speed")
def train_speed(
    repeats: Annotated[int, typer.Option(min=1, help="Paired repeats; medians count.")] = 3,
    as_json: options.AsJson = False,
) -> None:
    """Measure split training by strategy and clients, beside peft on the unsplit model."""
    from fedsea_mq.cli.bench.train_speed import BESIDE, TRAINING

    _compare([TRAINING, BESIDE], repeats, "training", as_json=as_json)


@bench.command()
def gateway(
    repeats: Annotated[int, typer.Option(min=1, help="Paired repeats; medians count.")] = 3,
    as_json: options.AsJson = False,
) -> None:
    """Compare streams from a gateway with those from a client node, side by side."""
    from fedsea_mq.cli.bench.gateway import GATEWAY

    _compare([GATEWAY], repeats, "gateway", as_json=as_json)


@bench.command()
def chain(
    repeats: Annotated[int, typer.Option(min=1, help="Paired repeats; medians count.")] = 3,
    as_json: options.AsJson = False,
) -> None:
    """Measure a trunk in two stages: how busy they are, and what they cost against one node.

    Wants the machine for itself, and a core for each stage beside those for broker and clients.
    """
    from fedsea_mq.cli.bench.chain import CHAIN

    _compare([CHAIN], repeats, "chain", as_json=as_json)


@bench.command(name="tensor-parallel")
def tensor_parallel(
    repeats: Annotated[int, typer.Option(min=1, help="Paired repeats; medians count.")] = 3,
    as_json: options.AsJson = False,
) -> None:
    """Measure a trunk's step by two ranks beside one. Wants two cores for itself."""
    from fedsea_mq.cli.bench.tensor_parallel import TENSOR_PARALLEL

    _compare([TENSOR_PARALLEL], repeats, "tensor parallel", as_json=as_json)


@bench.command()
def plan(
    rounds: Annotated[int, typer.Option(min=1, help="Times each is measured; the best count.")] = 3,
    as_json: options.AsJson = False,
) -> None:
    """Compare what `fedsea plan` predicts with what happens, at three cuts over two links.

    Takes minutes, and wants the machine for itself.
    """
    from fedsea_mq.cli.bench.planned import bench_plan

    report = asyncio.run(bench_plan(rounds))
    if as_json:
        print_json(report)
        return
    rows = [(f"{row['model']} {row['cut']} {row['link']}", *_beside(row)) for row in report["rows"]]
    names = list(report["rows"][0]["measured"])
    print_table("predicted / measured", ["model, cut, link", *names], rows)
    console.print(
        f"worst relative error {report['worst_relative_error']:.2f}, goal {report['goal']:g}; "
        f"load average before: {report['load_average_before']:.1f}"
    )


def _beside(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['predicted'][name]:.4g} / {row['measured'][name]:.4g}" for name in row["measured"]
    ]


def _compare(comparisons: Sequence[Comparison], repeats: int, title: str, *, as_json: bool) -> None:
    from fedsea_mq.cli.bench.serving import run

    report = asyncio.run(run(comparisons, repeats))
    if as_json:
        print_json(report)
    else:
        print_report(report, title)


def print_report(report: dict[str, Any], title: str) -> None:
    """Each ratio with its repeats, then what it is over what, then what disturbed it."""
    ratios, machine = report["ratios"], report["machine"]
    print_table(title, ["ratio", "value", "repeats", "goal", "met"], _rows(ratios))
    for name, ratio in ratios.items():
        console.print(f"{name}: {ratio['says']}", style="dim", markup=False)
    if machine["was_busy"]:
        console.print(
            f"The machine was busy before: load average {machine['load_average_before']:.1f} on "
            f"{machine['cores']} cores. These figures are noisy, and worse than on one at rest."
        )


@bench.command(name="train-results")
def train_results(
    config: options.Config = None,
    set_: options.Overrides = None,
    cuts: Annotated[str, typer.Option(help="Comma-separated, as 1+1,2+2.")] = "1+1",
    seeds: Annotated[int, typer.Option(min=1, help="Of adapters, shards and order.")] = 3,
    scales: Annotated[str, typer.Option(help="Noise over the RMS.")] = "0.5,1.0,1.5,2.0",
    alone: Annotated[str, typer.Option(help="Of these, at which each client alone.")] = "0.5,1.5",
    count: Annotated[
        int, typer.Option("--n", min=1, help="Units of the validation split asked.")
    ] = 60,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for table, plot and scores: what it has is not found again."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Fine-tune federated, alone and pooled, and score it; the settings say on what and how.

    Takes hours. With --out, each score is kept as it is found, and a run that was stopped goes on
    where it was, with the same settings.
    """
    from fedsea_mq.cli.bench.kept_scores import KeptScores
    from fedsea_mq.cli.bench.train_results import Grid, markdown_rows
    from fedsea_mq.cli.bench.train_results import train_results as run
    from fedsea_mq.settings import Settings

    each = options.each
    grid = Grid(
        each(cuts, options.as_cut), range(seeds), each(scales, float), each(alone, float), count
    )
    settings = Settings.load(config, set_ or [], ["log.level=warning"])
    file = None if out is None else out / "results.jsonl"
    rows = asyncio.run(run(settings, grid, KeptScores(file, settings, count)))
    if out is not None:
        from fedsea_mq.cli.bench.train_plots import plot_results

        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
        plot_results(rows, out / "results.png")
    if as_json:
        print_json(rows)
    else:
        console.print("\n".join(markdown_rows(rows)), soft_wrap=True)


def _rows(ratios: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            f"{ratio['value']:.3g}",
            " ".join(f"{value:.3g}" for value in ratio["repeats"]),
            _goal(ratio),
            {True: "yes", False: "no", None: "-"}[ratio.get("met")],
        )
        for name, ratio in ratios.items()
    ]


def _goal(ratio: dict[str, Any]) -> str:
    if "goal" not in ratio:
        return "-"
    return f"{'<=' if ratio['goal_is'] == 'at most' else '>='} {ratio['goal']:g}"
