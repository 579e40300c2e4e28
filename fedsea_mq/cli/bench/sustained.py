"""Two thousand clients for ten minutes: nothing but `busy`, and no memory that grows."""

from __future__ import annotations

from typing import Final

from fedsea_mq.cli.bench.comparison import Comparison, Ratio, Repeat
from fedsea_mq.cli.bench.workbench import Workbench
from fedsea_mq.cli.loadtest import run_load
from fedsea_mq.load.plan import Lengths, LoadPlan

_CLIENTS: Final = 2000
_SECONDS: Final = 600.0
# Of what a process held a quarter into the run, it may hold this much more at the end.
_GROWTH: Final = 1.05


async def _repeat(bench: Workbench) -> Repeat:
    plan = LoadPlan(
        sessions=(1,) * _CLIENTS,
        prompt=Lengths(low=16, high=64),
        new=Lengths(low=8, high=48),
        duration_s=_SECONDS,
        warmup_s=30.0,
    )
    async with bench.system() as system:
        run = await run_load(system.local, plan)
    report = run.report
    held = report["memory"]
    grown = {name: one["end_mb"] / one["warm_mb"] for name, one in held.items() if one["warm_mb"]}
    met = run.tally.errors + run.tally.errors_outside
    ok = not met and max(grown.values()) <= _GROWTH
    kept = (
        "requests",
        "errors_outside",
        "refusals",
        "tokens_per_s",
        "ttft_ms",
        "tpot_ms",
        "mean_batch",
        "trunk_busy",
    )
    return {"clients_2000_ok": float(ok)}, {name: report[name] for name in kept} | {
        "memory": held,
        "memory_growth": grown,
        "generator": report["generator"],
    }


SUSTAINED: Final = Comparison(
    "sustained",
    (
        Ratio(
            "clients_2000_ok",
            "1 if 2,000 thin clients met no error but busy for 10 minutes, and no memory grew",
            1.0,
        ),
    ),
    _repeat,
    slow=True,
)
