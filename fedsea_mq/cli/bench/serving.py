"""Runs the comparisons, and writes down what came of them."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
import transformers

from fedsea_mq.cli.bench.batching import BATCHING
from fedsea_mq.cli.bench.comparison import Comparison, Outcome
from fedsea_mq.cli.bench.direct import DIRECT
from fedsea_mq.cli.bench.floors import FLOORS
from fedsea_mq.cli.bench.int8 import INT8
from fedsea_mq.cli.bench.interference import FAIRNESS, PREFILL
from fedsea_mq.cli.bench.machine import BUSY_LOAD, load_average
from fedsea_mq.cli.bench.model_b import write_model
from fedsea_mq.cli.bench.plots import plot_serving
from fedsea_mq.cli.bench.relaying import RELAYING
from fedsea_mq.cli.bench.resending import RESENDING
from fedsea_mq.cli.bench.sealing import SEALING
from fedsea_mq.cli.bench.speculating import SPECULATING
from fedsea_mq.cli.bench.sustained import SUSTAINED
from fedsea_mq.cli.bench.transformers_race import TRANSFORMERS
from fedsea_mq.cli.bench.workbench import Workbench
from fedsea_mq.cli.output import json_text, progress_console
from fedsea_mq.errors import ConfigError

COMPARISONS: Final = (
    FLOORS,
    INT8,
    BATCHING,
    RESENDING,
    TRANSFORMERS,
    RELAYING,
    DIRECT,
    SEALING,
    PREFILL,
    FAIRNESS,
    SPECULATING,
    SUSTAINED,
)


def chosen(only: Sequence[str]) -> list[Comparison]:
    """The comparisons of those names, or all that are not slow. Raises `ConfigError`."""
    if not only:
        return [one for one in COMPARISONS if not one.slow]
    found = [one for one in COMPARISONS if any(one.answers_to(name) for name in only)]
    unknown = [name for name in only if not any(one.answers_to(name) for one in COMPARISONS)]
    if unknown:
        known = ", ".join(one.name for one in COMPARISONS)
        raise ConfigError(f"--only {unknown[0]}: expected a ratio's name or one of {known}")
    return found


async def run(comparisons: Sequence[Comparison], repeats: int) -> dict[str, Any]:
    """Measure them one after the other; the report."""
    outcomes, load = [], load_average()
    with tempfile.TemporaryDirectory(prefix="fedsea-bench-") as name:
        bench = Workbench.of(Path(name))
        write_model(Path(bench.settings.model.path))
        for comparison in comparisons:
            outcome = Outcome(comparison)
            times = 1 if comparison.slow else repeats
            for number in range(1, times + 1):
                progress_console.print(f"{comparison.name}, {number} of {times}", style="dim")
                outcome.repeats.append(await comparison.repeat(bench))
            outcomes.append(outcome)
    found = [outcome.as_json() for outcome in outcomes]
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_average_before": load,
            "was_busy": load > BUSY_LOAD,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "ratios": {name: ratio for one in found for name, ratio in one["ratios"].items()},
        "measured": {
            outcome.comparison.name: one["measured"]
            for outcome, one in zip(outcomes, found, strict=True)
        },
    }


def write_report(report: dict[str, Any], out: Path) -> None:
    """`serving.json`, and `serving.png` if a curve was measured: over contexts or sessions."""
    out.mkdir(parents=True, exist_ok=True)
    plot_serving(report["measured"], out / "serving.png")
    (out / "serving.json").write_text(json_text(report))
