"""The commands that load, score and watch a system."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsea_mq.cli import options
from fedsea_mq.cli.output import console, print_json, print_table
from fedsea_mq.cli.places import Place
from fedsea_mq.errors import ConfigError
from fedsea_mq.settings import NOISE_OFF
from fedsea_mq.tasks.task import Split, Wanted


def loadtest(
    config: options.Config = None,
    set_: options.Overrides = None,
    as_json: options.AsJson = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the report as JSON, Markdown and PNG.")
    ] = None,
    join: Annotated[
        bool, typer.Option("--join", help="Load the running system of the config's broker.")
    ] = False,
    clients: Annotated[int, typer.Option(min=1, max=20_000, help="Connections.")] = 16,
    sessions: Annotated[int, typer.Option(min=1, max=1024, help="Sessions a client.")] = 1,
    full: Annotated[
        bool, typer.Option("--full", help="Clients with head and tail; else replayed states.")
    ] = False,
    arrivals: Annotated[
        str, typer.Option(help="`closed`, `poisson:RATE`, `bursts:RATE,SIZE`, `trace:FILE`.")
    ] = "closed",
    prompt: Annotated[str, typer.Option(help="Prompt tokens: 64, 32-128 or 100~0.5.")] = "64",
    new: Annotated[str, typer.Option(help="New tokens, in the same forms.")] = "32",
    link: Annotated[
        str, typer.Option(help="`lan`, `wan`, `mobile` or DELAY_MS,JITTER_MS,MBPS,LOSS.")
    ] = "lan",
    duration: Annotated[float, typer.Option(min=1, help="Seconds, warm-up included.")] = 20.0,
    warmup: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds of the duration, at its start, that are not measured.",
            show_default="3, or a quarter of the duration if that is less",
        ),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, max=64, help="Load processes.")] = 1,
    on: options.On = Place.LOCAL,
    address: options.RayAddress = None,
    stops: Annotated[float, typer.Option(min=0, max=1, help="Share cancelled half way.")] = 0.0,
    vanishes: Annotated[
        float, typer.Option(min=0, max=1, help="Share whose client leaves without a word.")
    ] = 0.0,
    slo_ttft: Annotated[float, typer.Option(min=1, help="ms; slower is not good.")] = 2000.0,
    slo_tpot: Annotated[float, typer.Option(min=1, help="ms; slower is not good.")] = 200.0,
    seed: Annotated[int, typer.Option(help="Of arrivals and lengths.")] = 0,
) -> None:
    """Load a system with simulated clients; report latency, throughput and fairness.

    Exits 1 if no request succeeded.
    """
    from fedsea_mq.cli.load_options import plan_from
    from fedsea_mq.cli.loadtest import LoadFrom
    from fedsea_mq.cli.loadtest import loadtest as run

    plan = plan_from(
        arrivals,
        link,
        sessions=(sessions,) * clients,
        kind="full" if full else "thin",
        prompt=prompt,
        new=new,
        duration_s=duration,
        warmup_s=warmup,
        stops=stops,
        vanishes=vanishes,
        slo={"ttft_ms": slo_ttft, "tpot_ms": slo_tpot},
        seed=seed,
    )
    settings = options.on_cluster(options.quiet(config, set_), address)
    load = LoadFrom(processes, on)
    asyncio.run(run(settings, plan, load, join=join, out=out, as_json=as_json))


def soak(
    minutes: Annotated[float, typer.Option(min=1.0, help="How long, warm-up and all.")] = 60.0,
    load: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of what the system takes.")
    ] = 0.8,
    config: options.Config = None,
    set_: options.Overrides = None,
    as_json: options.AsJson = False,
) -> None:
    """Load a system steadily for long, and see that no process grows.

    Exits 1 if one did: in memory by more than 2 % after the warm-up, or in open files at all; or if
    a request failed.
    """
    from fedsea_mq.cli.soak import soak as run

    soaked = asyncio.run(run(options.quiet(config, set_), minutes, load))
    told = soaked.as_json()
    if as_json:
        print_json(told)
    else:
        rows = [(name, *one.values()) for name, one in told["processes"].items()]
        columns = ("process", "MB, warm", "MB, end", "growth", "files, warm", "files, end")
        print_table(f"{minutes:g} min at {told['rate_rps']} requests/s", columns, rows)
        console.print(soaked.verdict, soft_wrap=True)
    sys.exit(0 if soaked.is_flat else 1)


def evaluate(
    config: options.Config = None,
    set_: options.Overrides = None,
    task: Annotated[
        str | None, typer.Option(help="superglue/..., xsum, coqa, embedded/... or jsonl:PATH.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="The task's file, folder or hub id; else its own on the hub.")
    ] = None,
    split: Annotated[Split, typer.Option(help="Of the task's data.")] = Split.VALIDATION,
    count: options.Count = 200,
    seed: Annotated[int, typer.Option(help="Of the worlds, or of which examples.")] = 1000,
    join: Annotated[bool, typer.Option(help="Use the running broker of the settings.")] = False,
    adapter: options.Adapter = None,
    as_json: options.AsJson = False,
) -> None:
    """Score a task, or the embedded three, with the settings' noise and without."""
    settings = options.with_adapter(options.quiet(config, set_), adapter)
    if task is None and data is not None:
        raise ConfigError("--data: of which --task?")
    from fedsea_mq.tasks.registry import find

    chosen = None if task is None else find(task, data)
    from fedsea_mq.cli import score

    said: dict[str, Any]
    if chosen is None:
        asked, said = score.embedded(count, seed), {"n": count}
    else:
        one = score.Asked.of(chosen, Wanted(split, count, seed))
        asked, said = [one], {"task": task, "n": one.units, "answers": len(one.examples)}
    noises: list[dict[str, Any]] = [settings.noise.model_dump(mode="json"), dict(NOISE_OFF)]
    noised, noise_free = asyncio.run(score.score(settings, noises, asked, join=join))
    if as_json:
        print_json({**noised.as_json(), "noise_off": noise_free.as_json(), **said})
    else:
        score.print_scores(task or "embedded tasks, held-out worlds", [noise_free, noised])


def sweep(
    config: options.Config = None,
    set_: options.Overrides = None,
    scales: Annotated[str, typer.Option(help="Relative noise scales, comma-separated.")] = (
        "0.05,0.1,0.15,0.2,0.25,0.3,0.4,0.5,0.7"
    ),
    points: Annotated[float, typer.Option(help="Loss allowed in any task.")] = 1.0,
    count: options.Count = 500,
    seed: Annotated[int, typer.Option(help="Seed of the held-out worlds.")] = 1000,
    as_json: options.AsJson = False,
) -> None:
    """Find the largest noise at which no embedded task loses more than a point."""
    from fedsea_mq.cli import score

    settings = options.quiet(config, set_)
    noises: list[dict[str, Any]] = [dict(NOISE_OFF)]
    noises += [{"mode": "relative", "scale": scale} for scale in options.each(scales, float)]
    asked = score.embedded(count, seed)
    noise_free, *noised = asyncio.run(score.score(settings, noises, asked, join=False))
    chosen = score.largest_harmless(noise_free, noised, points)
    if as_json:
        print_json(
            {
                "noise_off": noise_free.as_json(),
                "sweep": [one.as_json() for one in noised],
                "largest_within_points": chosen.as_json() if chosen is not None else None,
                "points": points,
                "n": count,
            }
        )
        return
    score.print_scores("noise sweep, held-out worlds", [noise_free, *noised])
    if chosen is None:
        console.print(f"even the smallest scale costs more than {points:g} points")
    else:
        console.print(
            f"largest within {points:g} points: {chosen.sigma_over_head_rms:.2f} of the head "
            f"output's RMS (sigma {chosen.sigma:.4f})"
        )
