"""`fedsea loadtest`: simulated clients against a system of one's own or a running one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

from fedsea_mq.cli.output import console, json_text, print_json, progress_console
from fedsea_mq.cli.places import Place, system_on
from fedsea_mq.cli.started import Started
from fedsea_mq.cli.system import System
from fedsea_mq.errors import FedSeaError, LoadTestFailed
from fedsea_mq.load.page import markdown
from fedsea_mq.load.plan import LoadPlan
from fedsea_mq.load.plots import plot_run
from fedsea_mq.load.report import build_report, failure
from fedsea_mq.load.samples import Samples
from fedsea_mq.load.tally import Tally
from fedsea_mq.settings import Settings, Speculation
from fedsea_mq.transport.status import StatusWatch

_SAMPLE_S = 1.0
_OF_NODES: Final = frozenset(
    {
        *("weights", "kv_cache", "threads", "nodes", "stages"),
        *("kv_memory_mb", "max_sessions", "step_positions"),
    }
)


@dataclass(frozen=True, slots=True)
class LoadFrom:
    """How many processes make the load, and where they and the system are."""

    processes: int = 1
    place: Place = Place.LOCAL


@dataclass(slots=True)
class LoadRun:
    """What a load test measured."""

    plan: LoadPlan
    tally: Tally
    samples: Samples
    settings: Settings

    @property
    def report(self) -> dict[str, Any]:
        """See `build_report`."""
        system = described(self.settings, self.plan)
        return build_report(self.plan, self.tally, self.samples, system)


def described(settings: Settings, plan: LoadPlan) -> dict[str, Any]:
    """What of the settings makes figures what they are; those of nodes, as far as they are ours."""
    model, trunk, client = settings.model, settings.trunk, settings.client
    said: dict[str, Any] = {
        "broker": settings.broker.clients,
        "model": str(model.path),
        "cut": f"{model.head_blocks}+{model.tail_blocks}",
        "dtype": model.dtype,
        "weights": model.weights,
        "kv_cache": model.kv_cache,
        "threads": model.threads,
        "wire_dtype": client.wire_dtype.value,
        "direct": client.direct,
        "nodes": trunk.nodes,
        "stages": trunk.stages,
        "kv_memory_mb": trunk.kv_memory_mb,
        "max_sessions": trunk.max_sessions,
        "step_positions": trunk.step_positions,
        "give_up_s": client.give_up_s,
    }
    if plan.kind == "full":
        said |= {"noise": settings.noise.mode.value, "speculation": client.speculation.value}
    return said


async def loadtest(
    settings: Settings,
    plan: LoadPlan,
    load: LoadFrom,
    *,
    join: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Run the plan, with progress on standard error; print the report, and write it to `out`.

    Raises:
        LoadTestFailed: no request succeeded.
    """
    if plan.kind == "thin" and settings.client.speculation is not Speculation.OFF:
        progress_console.print("thin clients do not speculate: client.speculation is not used")
    progress_console.print("starting the processes ...", style="dim")
    async with system_on(load.place)(settings, joins=join) as system:
        run = await run_load(system, plan, load.processes)
    report = run.report
    if join:
        # What the nodes of a running system are set to is not in these settings.
        report["system"] = {k: v for k, v in report["system"].items() if k not in _OF_NODES}
    if out is not None:
        write_report(run, report, out)
    if as_json:
        print_json(report)
    else:
        console.print(Markdown(markdown(report)))
    if (why := failure(report)) is not None:
        raise LoadTestFailed(why)


def write_report(run: LoadRun, report: dict[str, Any], out: Path) -> None:
    """`loadtest.json`, `loadtest.md` and `loadtest.png`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "loadtest.json").write_text(json_text(report))
    (out / "loadtest.md").write_text(markdown(report))
    plot_run(run.tally, run.samples, run.plan.measured, out / "loadtest.png")


async def run_load(
    system: System[Any], plan: LoadPlan, processes: int = 1, sample_s: float = _SAMPLE_S
) -> LoadRun:
    """Drive a system that is up with the plan, from that many processes.

    Raises:
        ProcessFailed: a load process ended early.
    """
    plans = plan.split(processes)
    loads = [await system.start_load(f"load-{number}") for number in range(len(plans))]
    try:
        await asyncio.gather(*(load.wait_ready() for load in loads))
        for load, part in zip(loads, plans, strict=True):
            load.ask(part.model_dump(mode="json"))
        await asyncio.gather(*(load.line() for load in loads))  # connected
        pids = {child.name: child.pid for child in system.children if child.running and child.pid}
        progress = Progress(plan, len(loads))
        samples = Samples(pids)
        async with (
            StatusWatch(system.settings.broker, system.settings.security) as watch,
            asyncio.TaskGroup() as group,
        ):
            sampling = group.create_task(_sample(watch, samples, progress, sample_s))
            tallies = await _tallies(loads, progress)
            sampling.cancel()
    finally:
        await asyncio.gather(*(load.stop() for load in loads))
    whole = Tally()
    for tally in tallies:
        whole.add(tally)
    return LoadRun(plan, whole, samples, system.settings)


async def _tallies(loads: Sequence[Started], progress: Progress) -> list[Tally]:
    with Live(progress, console=progress_console, transient=True, refresh_per_second=4):
        return await asyncio.gather(*(_tally(n, load, progress) for n, load in enumerate(loads)))


async def _tally(number: int, load: Started, progress: Progress) -> Tally:
    while True:
        line = await load.line()
        if "tally" in line:
            return Tally.from_json(line["tally"])
        progress.loads[number] = line["progress"]


async def _sample(
    watch: StatusWatch, samples: Samples, progress: Progress, interval_s: float
) -> None:
    while True:
        # A broker that is busy or away for a while is part of what is tested.
        with suppress(FedSeaError):
            progress.sample = samples.take(await watch.report())
        await asyncio.sleep(interval_s)


@dataclass(slots=True)
class Progress:
    """The line that a person sees while the test runs."""

    plan: LoadPlan
    processes: int
    loads: dict[int, dict[str, int]] = field(default_factory=dict)
    sample: Any = None

    def __rich__(self) -> Text:
        """For rich."""
        total = {
            key: sum(load[key] for load in self.loads.values())
            for key in ("tokens", "in_flight", "done", "errors")
        }
        said = (
            f"{total['done']} requests done, {total['in_flight']} running, "
            f"{total['errors']} errors, {total['tokens']} tokens"
        )
        if self.sample is not None:
            said += (
                f"; trunk busy {self.sample.busy:.0%}, mean batch {self.sample.batch:.1f}, "
                f"{self.sample.at_s:.0f} of {self.plan.duration_s:g} s"
            )
        return Text(said, style="dim")
