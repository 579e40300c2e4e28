"""What a long prompt, or a client with many sessions, does to everybody else."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from fedsea_mq.cli.bench.comparison import Comparison, Ratio, Repeat
from fedsea_mq.cli.bench.workbench import System, Workbench
from fedsea_mq.cli.loadtest import LoadRun
from fedsea_mq.load.plan import Lengths, LoadPlan

_SECONDS: Final = 12.0
_WARMUP: Final = 2.0


def _plan(sessions: tuple[int, ...], prompt: int, new: int, **fields: Any) -> LoadPlan:
    return LoadPlan(
        sessions=sessions,
        prompt=Lengths(low=prompt, high=prompt),
        new=Lengths(low=new, high=new),
        duration_s=_SECONDS,
        warmup_s=_WARMUP,
        **fields,
    )


async def _prefill(bench: Workbench) -> Repeat:
    chats = _plan((1,) * 16, 64, 32)
    async with bench.system() as system:
        alone = await system.load(chats)
        beside, _ = await asyncio.gather(system.load(chats), _long_prompts(system))
    p95 = [run.tally.tpot.percentile(95) * 1000 for run in (alone, beside)]
    return {"prefill_interference": p95[1] / p95[0]}, {
        "tpot_p95_alone_ms": p95[0],
        "tpot_p95_beside_ms": p95[1],
        "itl_p99_alone_ms": alone.tally.itl.percentile(99) * 1000,
        "itl_p99_beside_ms": beside.tally.itl.percentile(99) * 1000,
    }


async def _long_prompts(system: System) -> LoadRun:
    """One prompt of 2,048 tokens after the other, for the whole run."""
    return await system.load(_plan((1,), 2048, 1))


PREFILL: Final = Comparison(
    "prefill",
    (
        Ratio(
            "prefill_interference",
            "p95 TPOT of 16 thin sessions while 2,048-token prompts come, over without",
            2.0,
            at_most=True,
        ),
    ),
    _prefill,
)


async def _fairness(bench: Workbench) -> Repeat:
    """The budget of a step is what is short: one position for each of the nine clients."""
    sessions = (32, *(1,) * 8)
    async with bench.system(step_positions=len(sessions)) as system:
        run = await system.load(_plan(sessions, 16, 32))
    report = run.report
    return {"jain": report["jain"]}, {
        "tokens_by_client": dict(run.tally.tokens_of),
        "mean_batch": report["mean_batch"],
    }


FAIRNESS: Final = Comparison(
    "fairness",
    (Ratio("jain", "Jain's index of tokens by client: one with 32 sessions, 8 with one", 0.95),),
    _fairness,
)
