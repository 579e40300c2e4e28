"""How busy the stages of a chain are, and what is left of one stage's own speed through all."""

from __future__ import annotations

from typing import Any, Final

from fedsea_mq.cli.bench.comparison import Comparison, Ratio, Repeat
from fedsea_mq.cli.bench.model_b import write_wide_model
from fedsea_mq.cli.bench.workbench import Served, System, Workbench

_STAGES: Final = 2
_SESSIONS: Final = 16
_CONTEXT: Final = 64
_ANY_PORT: Final = "tcp://127.0.0.1:*"


async def _repeat(bench: Workbench) -> Repeat:
    wide = bench.folder / "model-wide"
    write_wide_model(wide)
    narrow_ratios, narrow = await _chained(bench, new=256)
    wide_ratios, widely = await _chained(bench.model(path=str(wide)), new=96)
    ratios = {**narrow_ratios, **{f"wide_{name}": one for name, one in wide_ratios.items()}}
    return ratios, {"model_b": narrow, "wide": widely}


async def _chained(bench: Workbench, new: int) -> Repeat:
    """One model, `new` tokens a session: some seconds of steady decoding."""
    # States pass the broker by, between clients and stages and between stages.
    past = Workbench(bench.settings.replace(client={"direct": True}), bench.folder)
    async with past.system(stages=_STAGES, direct=_ANY_PORT) as system:
        chain = await _served(system, new)
    async with past.system(direct=_ANY_PORT) as system:
        whole = await _served(system, new)
    # The blocks cost alike, and so do the stages.
    async with bench.trunk(blocks=f"1/{_STAGES}").alone() as alone:
        batch = _SESSIONS // _STAGES
        bare = await alone.ask("step", batch=batch, context=_CONTEXT, steps=new)
    ratios = {
        "chain_busy": max(chain.busy_of().values()),
        "chain_vs_bare_stage": chain.tokens_per_s / bare["tokens_per_s"],
        "chain_vs_whole": chain.tokens_per_s / whole.tokens_per_s,
    }
    return ratios, {"chain": _figures(chain), "whole": _figures(whole), "bare_stage": bare}


async def _served(system: System, new: int) -> Served:
    await system.warm()
    return await system.together((1,) * _SESSIONS, _CONTEXT, new)


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


CHAIN: Final = Comparison(
    "chain", (*_ratios("", "hidden 512"), *_ratios("wide_", "hidden 2048")), _repeat
)
