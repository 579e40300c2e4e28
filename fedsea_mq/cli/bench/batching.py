"""What batching is worth, and what is left of the engine's speed behind the network.

Beside it, what the paper's own code does: KV collaboration for one session at a time, the clients
taking turns.
"""

from __future__ import annotations

from typing import Any, Final

from fedsea_mq.cli.bench.comparison import Comparison, Ratio, Repeat
from fedsea_mq.cli.bench.workbench import Served, System, Workbench

_SHORT, _LONG = 64, 512
# New tokens a session: enough seconds of steady decoding at each size.
_NEW: Final = {1: 192, 4: 192, 16: 160, 64: 128}
_NEW_IN_TURN: Final = {1: 192, 4: 64, 16: 16, 64: 8}


async def _repeat(bench: Workbench) -> Repeat:
    async with bench.system() as system:
        served = await _each_size(system, _NEW)
    # On a trunk that waits for nobody.
    async with bench.system(max_wait_ms=0) as system:
        in_turn = await _each_size(system, _NEW_IN_TURN, in_turn=True)
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
    turns = {name: run.tokens_per_s for name, run in in_turn.items()}
    beside = {"bare_64x512": bare, "in_turn_tokens_per_s": turns}
    return ratios, beside | {name: _figures(run) for name, run in served.items()}


async def _each_size(
    system: System, new: dict[int, int], *, in_turn: bool = False
) -> dict[str, Served]:
    """Each number of sessions at each context; `new` tokens a session."""
    await system.warm()
    return {
        f"{sessions}x{context}": await system.together(
            (1,) * sessions, context, new[sessions], in_turn=in_turn
        )
        for context in (_SHORT, _LONG)
        for sessions in new
    }


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
            "batching_64_ctx64", "tokens/s of 64 thin sessions over those of one, context 64", 8.0
        ),
        Ratio("batching_64_ctx512", "the same at context 512", 5.5),
        Ratio(
            "served_vs_bare_64",
            "tokens/s of 64 thin sessions through the broker over the bare engine's",
            0.92,
        ),
        Ratio(
            "trunk_busy",
            "share of the time in which the trunk computes, 64 sessions, context 512",
            0.95,
        ),
        Ratio(
            "occupancy", "mean batch over sessions, the least of 4, 16 and 64, context 512", 0.95
        ),
        Ratio(
            "tpot_vs_step",
            "p95 TPOT over the trunk's step time, 64 sessions, context 512",
            1.3,
            at_most=True,
        ),
    ),
    _repeat,
)
