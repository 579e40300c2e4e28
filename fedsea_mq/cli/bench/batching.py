"""What batching is worth, and what is left of the engine's speed behind the network."""

from __future__ import annotations

from typing import Any, Final

from fedsea_mq.cli.bench.comparison import Comparison, Ratio, Repeat
from fedsea_mq.cli.bench.workbench import Served, Workbench

_SHORT, _LONG = 64, 512
# New tokens a session: enough seconds of steady decoding at each size.
_NEW: Final = {1: 192, 4: 192, 16: 160, 64: 128}


async def _repeat(bench: Workbench) -> Repeat:
    served: dict[str, Served] = {}
    async with bench.system() as system:
        await system.together((1, 1), 32, 8)  # warm
        for sessions, context in (
            (1, _SHORT),
            (4, _SHORT),
            (16, _SHORT),
            (64, _SHORT),
            (1, _LONG),
            (4, _LONG),
            (16, _LONG),
            (64, _LONG),
        ):
            run = await system.together((1,) * sessions, context, _NEW[sessions])
            served[f"{sessions}x{context}"] = run
    async with bench.alone() as alone:
        bare = await alone.ask("step", batch=64, context=_LONG, steps=_NEW[64])
    one, many = served["1x512"], served["64x512"]
    ratios = {
        "batching_64_ctx64": served["64x64"].tokens_per_s / served["1x64"].tokens_per_s,
        "batching_64_ctx512": many.tokens_per_s / one.tokens_per_s,
        "served_vs_bare_64": many.tokens_per_s / bare["tokens_per_s"],
        "trunk_busy": many.mean("busy"),
        "occupancy": min(served[f"{n}x{_LONG}"].mean("batch") / n for n in (4, 16, 64)),
        "tpot_vs_step": many.tpot_s(95) / many.step_s,
    }
    return ratios, {"bare_64x512": bare} | {name: _figures(run) for name, run in served.items()}


def _figures(run: Served) -> dict[str, Any]:
    return {
        "tokens_per_s": run.tokens_per_s,
        "mean_batch": run.mean("batch"),
        "trunk_busy": run.mean("busy"),
        "step_ms": run.step_s * 1000,
        "tpot_p50_ms": run.tpot_s(50) * 1000,
        "tpot_p95_ms": run.tpot_s(95) * 1000,
        "generator": run.run.report["generator"],
    }


BATCHING: Final = Comparison(
    "batching",
    (
        Ratio(
            "batching_64_ctx64", 8.0, "tokens/s of 64 thin sessions over those of one, context 64"
        ),
        Ratio("batching_64_ctx512", 5.5, "the same at context 512"),
        Ratio(
            "served_vs_bare_64",
            0.92,
            "tokens/s of 64 thin sessions through the broker over the bare engine's",
        ),
        Ratio(
            "trunk_busy",
            0.95,
            "share of the time in which the trunk computes, 64 sessions, context 512",
        ),
        Ratio(
            "occupancy", 0.95, "mean batch over sessions, the least of 4, 16 and 64, context 512"
        ),
        Ratio(
            "tpot_vs_step",
            1.3,
            "p95 TPOT over the trunk's step time, 64 sessions, context 512",
            at_most=True,
        ),
    ),
    _repeat,
)
