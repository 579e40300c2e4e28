"""The direct path from client to trunk node against the relay, on the same running system."""

from __future__ import annotations

from statistics import mean
from typing import Any, Final

from fedsea_mq.cli.bench.comparison import Comparison, Ratio, Repeat
from fedsea_mq.cli.bench.workbench import Served, System, Workbench

_CONTEXT: Final = 64
# New tokens a session: enough seconds of steady decoding at each size.
_NEW: Final = {1: 256, 64: 128}
# There and back, so that a machine that slows down meanwhile slows down both.
_ORDER: Final = (False, True, True, False)


async def _repeat(bench: Workbench) -> Repeat:
    runs: dict[bool, dict[int, list[Served]]] = {way: {1: [], 64: []} for way in (False, True)}
    async with bench.system(direct="tcp://127.0.0.1:*") as system:
        await system.warm()
        for sessions, new in _NEW.items():
            for way in _ORDER:
                runs[way][sessions].append(await _run(system, way, sessions, new))
    relayed, direct = (_figures(runs[way]) for way in (False, True))
    ratios = {
        "direct_vs_relay": direct["tokens_per_s_64"] / relayed["tokens_per_s_64"],
        "direct_tpot_1": direct["tpot_ms_1"] / relayed["tpot_ms_1"],
    }
    return ratios, {"relayed": relayed, "direct": direct}


async def _run(system: System, direct: bool, sessions: int, new: int) -> Served:
    local = system.local
    local.settings = local.settings.replace(client={"direct": direct})
    served = await system.together((1,) * sessions, _CONTEXT, new)
    share = served.run.report["direct_share"]
    if (share > 0.9) is not direct:
        raise RuntimeError(f"{share:.0%} of the round trips were direct")
    return served


def _figures(runs: dict[int, list[Served]]) -> dict[str, Any]:
    one, many = runs[1], runs[64]
    return {
        "tpot_ms_1": mean(run.tpot_s(50) for run in one) * 1000,
        "tokens_per_s_64": mean(run.tokens_per_s for run in many),
        "tpot_p95_ms_64": mean(run.tpot_s(95) for run in many) * 1000,
        "trunk_busy_64": mean(run.mean("busy") for run in many),
        "mean_batch_64": mean(run.mean("batch") for run in many),
        "direct_share": many[0].run.report["direct_share"],
        "generator": many[0].run.report["generator"],
    }


DIRECT: Final = Comparison(
    "direct",
    (
        Ratio(
            "direct_vs_relay",
            "tokens/s of 64 thin sessions past the broker over those through it, context 64",
        ),
        Ratio(
            "direct_tpot_1",
            "median TPOT of one thin session past the broker over that through it, context 64",
        ),
    ),
    _repeat,
)
