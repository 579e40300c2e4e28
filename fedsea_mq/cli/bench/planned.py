"""What `fedsea plan` predicts against what happens: measured side by side, on this machine."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedsea_mq.cli.bench.machine import BUSY_LOAD, load_average
from fedsea_mq.cli.bench.model_b import write_model
from fedsea_mq.cli.output import progress_console
from fedsea_mq.cli.plan.block_times import time_blocks
from fedsea_mq.cli.plan.forecasting import forecaster
from fedsea_mq.cli.plan.measure import speed_of
from fedsea_mq.cli.plan.system_run import time_system
from fedsea_mq.cli.plan.token_times import (
    TokenTimes,
    client_peak_bytes,
    time_tokens,
    trunk_peak_bytes,
)
from fedsea_mq.cli.processes import LocalSystem
from fedsea_mq.load.plan import LINKS, Link
from fedsea_mq.model.checkpoint import EMBEDDED, read_config
from fedsea_mq.model.partition import Cut
from fedsea_mq.planning.architecture import Architecture
from fedsea_mq.planning.fitting import BlockTimes, SystemRun
from fedsea_mq.planning.forecast import Demand, Forecast
from fedsea_mq.settings import Settings
from fedsea_mq.transport.status import StatusWatch
from nodes import ClientNode
from nodes.load.slow_peer_link import link_over

GOAL: Final = 0.2
_DEMAND: Final = Demand(prompt=160, new=24)
_LINKS: Final = {name: LINKS[name] for name in ("lan", "wan")}
# Of each round and link; the first of a client warms up, and its bytes are those predicted.
_REQUESTS: Final = 6
Figures = Mapping[str, float]
# By link.
_Measured = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class _Case:
    """A model, how it is computed, and where it is cut."""

    name: str
    settings: Settings
    cuts: Sequence[Cut]


async def bench_plan(rounds: int) -> dict[str, Any]:
    """Measure speeds and systems in turns, so that both meet the same machine; compare.

    On both sides the requests and runs that were disturbed least count: of a request's further
    tokens the median, of several requests the fastest.
    """
    load, rows = load_average(), []
    with tempfile.TemporaryDirectory(prefix="fedsea-bench-") as name:
        for case in _cases(Path(name)):
            rows += await _rows(case, rounds)
    worst = max(error for row in rows for error in row["relative_error"].values())
    return {
        "rows": rows,
        "worst_relative_error": worst,
        "goal": GOAL,
        "met": worst <= GOAL,
        "load_average_before": load,
        "was_busy": load > BUSY_LOAD,
    }


def _cases(folder: Path) -> list[_Case]:
    model_b = folder / "model-b"
    write_model(model_b)
    quiet = Settings().replace(log={"level": "warning"}, broker={"heartbeat_ms": 200})
    packed = quiet.replace(model={"path": str(model_b), "dtype": "bf16"})
    return [
        _Case(EMBEDDED, quiet, (Cut(1, 1), Cut(2, 1), Cut(2, 2))),
        _Case("model-b", packed, (Cut(1, 0), Cut(2, 2), Cut(4, 4))),
    ]


async def _rows(case: _Case, rounds: int) -> list[dict[str, Any]]:
    config = read_config(case.settings.model.path)
    blocks: list[BlockTimes] = []
    runs: list[SystemRun] = []
    measured: dict[Cut, list[_Measured]] = {cut: [] for cut in case.cuts}
    for number in range(1, rounds + 1):
        progress_console.print(f"{case.name}, round {number} of {rounds}", style="dim")
        blocks.append(await asyncio.to_thread(time_blocks, config, case.settings))
        runs.append(await time_system(config, case.settings))
        for cut in case.cuts:
            measured[cut].append(await _measure(case.settings, cut))
    speed = speed_of(config, case.settings, BlockTimes.of(blocks), SystemRun.of(runs))
    architecture = Architecture.of(config)
    rows = []
    for cut in case.cuts:
        for name, link in _LINKS.items():
            plans = forecaster(architecture, case.settings, (speed, speed), link, _DEMAND)
            best = _best([one[name] for one in measured[cut]])
            where = {"model": case.name, "cut": str(cut), "link": name}
            rows.append({**where, **_compared(_predicted(plans.forecast(cut)), best)})
    return rows


def _best(repeats: Sequence[Figures]) -> Figures:
    return {name: min(one[name] for one in repeats) for name in repeats[0]}


def _compared(predicted: Figures, measured: Figures) -> dict[str, Any]:
    errors = {name: abs(predicted[name] / measured[name] - 1) for name in measured}
    return {
        "predicted": dict(predicted),
        "measured": dict(measured),
        "relative_error": errors,
        "worst": max(errors, key=lambda name: errors[name]),
    }


def _predicted(forecast: Forecast) -> Figures:
    return {
        "ttft_ms": forecast.ttft_s * 1000,
        "tpot_ms": forecast.tpot_s * 1000,
        "bytes_up": forecast.request.up,
        "bytes_down": forecast.request.down,
        "client_bytes": forecast.client_bytes,
        "trunk_bytes": forecast.trunk_bytes,
    }


async def _measure(settings: Settings, cut: Cut) -> _Measured:
    """A system at this cut, over each link."""
    model = {"head_blocks": cut.head_blocks, "tail_blocks": cut.tail_blocks}
    async with LocalSystem(settings.replace(model=model), trunks=1) as system:
        client_bytes = await client_peak_bytes(system, _DEMAND.prompt, _DEMAND.new)
        times = {name: await _over(system, link) for name, link in _LINKS.items()}
        async with StatusWatch(system.settings.broker) as watch:
            trunk_bytes = await trunk_peak_bytes(watch)
    held = {"client_bytes": client_bytes, "trunk_bytes": trunk_bytes}
    return {name: _figures(here) | held for name, here in times.items()}


async def _over(system: LocalSystem, link: Link) -> list[TokenTimes]:
    async with ClientNode(system.settings, link_over(link, 0)) as client:
        return [await time_tokens(client, _DEMAND.prompt, _DEMAND.new) for _ in range(_REQUESTS)]


def _figures(times: Sequence[TokenTimes]) -> dict[str, float]:
    first = times[0].stats.traffic
    return {
        "ttft_ms": min(one.ttft_s for one in times) * 1000,
        "tpot_ms": min(one.tpot_s for one in times) * 1000,
        "bytes_up": first.bytes_up,
        "bytes_down": first.bytes_down,
    }
