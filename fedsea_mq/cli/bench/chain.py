"""How busy the stages of a chain are, and what is left of one stage's own speed through all."""

from __future__ import annotations

from typing import Any, Final

from fedsea_mq.cli.bench.comparison import Comparison, Ratio, Repeat
from fedsea_mq.cli.bench.two_widths import at_two_widths, ratios_of_both
from fedsea_mq.cli.bench.workbench import Served, System, Workbench

_STAGES: Final = 2
_SESSIONS: Final = 16
_CONTEXT: Final = 64
_ANY_PORT: Final = "tcp://127.0.0.1:*"
# New tokens a session: seconds of steady decoding.
_NEW: Final = 256


async def _repeat(bench: Workbench) -> Repeat:
    return await at_two_widths(bench, _chained)


async def _chained(bench: Workbench) -> Repeat:
    # States pass the broker by, between clients and stages and between stages.
    past = Workbench(bench.settings.replace(client={"direct": True}), bench.folder)
    async with past.system(stages=_STAGES, direct=_ANY_PORT) as system:
        chain = await _served(system)
    async with past.system(direct=_ANY_PORT) as system:
        whole = await _served(system)
    # The blocks cost alike, and so do the stages.
    async with bench.trunk(blocks=f"1/{_STAGES}").alone() as alone:
        batch = _SESSIONS // _STAGES
        bare = await alone.ask("step", batch=batch, context=_CONTEXT, steps=_NEW)
    ratios = {
        "chain_busy": max(chain.busy_of().values()),
        "chain_vs_bare_stage": chain.tokens_per_s / bare["tokens_per_s"],
        "chain_vs_whole": chain.tokens_per_s / whole.tokens_per_s,
    }
    return ratios, {"chain": _figures(chain), "whole": _figures(whole), "bare_stage": bare}


async def _served(system: System) -> Served:
    await system.warm()
    return await system.together((1,) * _SESSIONS, _CONTEXT, _NEW)


def _figures(run: Served) -> dict[str, Any]:
    return {
        "tokens_per_s": run.tokens_per_s,
        "busy": run.busy_of(),
        "mean_batch": run.mean("batch"),
        "tpot_p50_ms": run.tpot_s(50) * 1000,
        "tpot_p95_ms": run.tpot_s(95) * 1000,
        "generator": run.run.report["generator"],
    }


def _ratios(prefix: str, model: str) -> list[Ratio]:
    return [
        Ratio(
            f"{prefix}chain_busy",
            f"{model}: share of the time in which the busiest of {_STAGES} stages computes, "
            f"{_SESSIONS} thin sessions, context {_CONTEXT}",
            0.85,
        ),
        Ratio(
            f"{prefix}chain_vs_bare_stage",
            f"{model}: tokens/s of the chain over those of one stage's bare engine, at a "
            "micro-batch",
        ),
        Ratio(
            f"{prefix}chain_vs_whole",
            f"{model}: tokens/s of the chain over those of one node with all blocks",
        ),
    ]


CHAIN: Final = Comparison("chain", ratios_of_both(_ratios), _repeat)
