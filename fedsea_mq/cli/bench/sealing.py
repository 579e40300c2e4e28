"""What security costs: a system with CURVE and sealed sessions, beside one with neither."""

from __future__ import annotations

from statistics import mean
from typing import Any, Final

from fedsea_mq.cli.bench.comparison import Comparison, Ratio, Repeat
from fedsea_mq.cli.bench.workbench import Served, Workbench
from fedsea_mq.security.identity import Party
from fedsea_mq.security.keys import write_pair
from fedsea_mq.security.trust import TrustFolder

_CONTEXT: Final = 64
# New tokens a session: enough seconds of steady decoding at each size.
_NEW: Final = {1: 256, 64: 128}
# There and back, so that a machine that slows down meanwhile slows down both.
_ORDER: Final = (False, True, True, False)


async def _repeat(bench: Workbench) -> Repeat:
    runs: dict[bool, dict[int, list[Served]]] = {how: {1: [], 64: []} for how in (False, True)}
    async with bench.system() as plain, _secured(bench).system() as secured:
        systems = {False: plain, True: secured}
        for system in systems.values():
            await system.warm()
        for sessions, new in _NEW.items():
            for how in _ORDER:
                served = await systems[how].together((1,) * sessions, _CONTEXT, new)
                runs[how][sessions].append(served)
    in_clear, sealed = (_figures(runs[how]) for how in (False, True))
    ratios = {
        "sealed_vs_clear": sealed["tokens_per_s_64"] / in_clear["tokens_per_s_64"],
        "sealed_tpot_1": sealed["tpot_ms_1"] / in_clear["tpot_ms_1"],
    }
    return ratios, {"in_clear": in_clear, "sealed": sealed}


def _secured(bench: Workbench) -> Workbench:
    """The same with all that there is to protect it, under keys of its own."""
    key, trust = bench.folder / "party.key", TrustFolder(bench.folder / "trust")
    if not key.exists():
        # One key for all: what it costs does not depend on whose it is.
        public = write_pair(bench.folder, "party")
        for party in (Party.CLIENT, Party.TRUNK):
            trust.add(party, "party", public)
    security = {
        "key": str(key),
        "broker_key": str(key.with_suffix(".pub")),
        "trust": str(trust.path),
        "seal": "on",
    }
    return Workbench(bench.settings.replace(security=security), bench.folder)


def _figures(runs: dict[int, list[Served]]) -> dict[str, Any]:
    one, many = runs[1], runs[64]
    tally = [run.run.tally for run in one]
    return {
        "tpot_ms_1": mean(run.tpot_s(50) for run in one) * 1000,
        "bytes_up_1": mean(each.bytes_up for each in tally),
        "bytes_down_1": mean(each.bytes_down for each in tally),
        "tokens_per_s_64": mean(run.tokens_per_s for run in many),
        "tpot_p95_ms_64": mean(run.tpot_s(95) for run in many) * 1000,
        "trunk_busy_64": mean(run.mean("busy") for run in many),
        "mean_batch_64": mean(run.mean("batch") for run in many),
        "generator": many[0].run.report["generator"],
    }


SEALING: Final = Comparison(
    "sealing",
    (
        Ratio(
            "sealed_vs_clear",
            "tokens/s of 64 thin sessions, sealed and over CURVE, over those with neither",
            0.95,
        ),
        Ratio(
            "sealed_tpot_1",
            "median TPOT of one thin session, sealed and over CURVE, over that of one with neither",
        ),
    ),
    _repeat,
)
