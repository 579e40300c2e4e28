"""A load test's report: one dictionary for machines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fedsea_mq.load.histogram import Histogram
from fedsea_mq.load.plan import LoadPlan
from fedsea_mq.load.samples import Sample, Samples
from fedsea_mq.load.tally import LATE_S, Outcome, Tally, jain

# Beyond these the figures say more about the load processes than about the system.
_BUSY_GENERATOR: Final = 0.85
_LATE_SHARE: Final = 0.05
_WORST_LAG_S: Final = 0.5


def build_report(
    plan: LoadPlan, tally: Tally, samples: Samples, system: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that was measured, in the field's terms; None where there is no sample.

    All figures are of the plan's measured time. `occupancy` is the mean batch of a step over the
    sessions that the plan keeps going, for a closed loop. `system` is what there is to say of the
    settings.
    """
    window = plan.measured
    measured_s = max(1e-9, _measured_s(plan, tally))
    steady = samples.between(window.from_s, window.until_s)
    batch = _mean([sample.batch for sample in steady if sample.batch])
    fullest = max(steady, key=lambda sample: sample.kv_reserved, default=None)
    decode_s = tally.decode_until - tally.decode_from
    return {
        "plan": plan.model_dump(mode="json", exclude={"trace"}) | {"trace": len(plan.trace)},
        "system": dict(system),
        "measured_s": round(measured_s, 3),
        "requests": {str(outcome): tally.outcomes[str(outcome)] for outcome in Outcome}
        | {"errors": dict(tally.errors), "unsent": tally.unsent, "unfinished": tally.unfinished},
        "errors_outside": {name: n for name, n in tally.errors_outside.items() if n},
        "errors_said": dict(tally.said),
        "ttft_ms": _percentiles(tally.ttft),
        "tpot_ms": _percentiles(tally.tpot),
        "itl_ms": _percentiles(tally.itl),
        "e2e_ms": _percentiles(tally.e2e),
        "new_tokens": tally.tokens,
        "tokens_per_s": tally.tokens / measured_s,
        "decode_tokens_per_s": tally.decode_tokens / decode_s if decode_s > 0 else None,
        "goodput": {
            "slo": plan.slo.model_dump(),
            "requests_per_s": tally.good / measured_s,
            "tokens_per_s": tally.good_tokens / measured_s,
            "share": _over(tally.good, _judged(tally)),
        },
        "mean_batch": batch,
        "occupancy": None if batch is None else batch / sum(plan.sessions),
        "trunk_busy": _mean([sample.busy for sample in steady]),
        "kv_reserved_peak": None if fullest is None else fullest.kv_reserved,
        "kv_used": None if fullest is None else _over(fullest.kv_reserved, fullest.kv_positions),
        "sessions_peak": max((sample.sessions for sample in steady), default=None),
        "jain": _fairness(plan, tally),
        "refusals": tally.refusals,
        "direct_share": _over(tally.direct_trips, tally.round_trips),
        "bytes_up": tally.bytes_up,
        "bytes_down": tally.bytes_down,
        "memory": _memory(samples.taken),
        "generator": _generator(tally),
    }


def failure(report: Mapping[str, Any]) -> str | None:
    """Why a test whose requests all failed did so; None if any brought a token or ended well."""
    requests = report["requests"]
    if report["new_tokens"] or any(requests[str(o)] for o in Outcome if o is not Outcome.BUSY):
        return None
    met = report["requests"]["errors"] or report["errors_outside"]
    said = [f"{n} {name}: {report['errors_said'][name]}" for name, n in met.items()]
    if requests["busy"]:
        said.append(f"{requests['busy']} Busy: refused until their patience ran out")
    if requests["unsent"]:
        said.append(f"{requests['unsent']} were not sent")
    if requests["unfinished"]:
        said.append(f"{requests['unfinished']} ran on without a token in that time")
    told = "; ".join(said) or "there was none"
    return f"no request succeeded in the measured {report['measured_s']:g} s: {told}"


def _measured_s(plan: LoadPlan, tally: Tally) -> float:
    """The window; of a load without one the time from the first request to the last answer."""
    window = plan.measured
    if math.isfinite(window.until_s):
        return window.until_s - window.from_s
    return max(0.0, tally.ended_at - tally.begun_at)


def _judged(tally: Tally) -> int:
    """Requests that were good or should have been; who stopped or vanished asked for less."""
    ended = tally.outcomes[Outcome.DONE] + tally.outcomes[Outcome.BUSY] + tally.errors.total()
    return ended + tally.unsent + tally.overdue


def _fairness(plan: LoadPlan, tally: Tally) -> float | None:
    """Jain's index over all clients, those that got nothing too; None if nobody got anything."""
    got = [float(tally.tokens_of[name]) for name in sorted(tally.tokens_of)]
    index = jain([*got, *[0.0] * (len(plan.sessions) - len(got))])
    return None if math.isnan(index) else index


def _percentiles(times: Histogram) -> dict[str, float | None]:
    read = {f"p{percent}": times.percentile(percent) for percent in (50, 95, 99)}
    return {name: _ms(value) for name, value in read.items()}


def _ms(seconds: float) -> float | None:
    return None if math.isnan(seconds) else round(seconds * 1000, 3)


def _memory(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Resident MB of each process: a quarter into the run, at the end, and at most."""
    held: dict[str, list[int]] = {}
    for sample in samples:
        for name, rss in sample.rss_bytes.items():
            held.setdefault(name, []).append(rss)
    return {
        name: {
            "warm_mb": round(values[len(values) // 4] / 1e6, 1),
            "end_mb": round(values[-1] / 1e6, 1),
            "peak_mb": round(max(values) / 1e6, 1),
        }
        for name, values in held.items()
    }


def _generator(tally: Tally) -> dict[str, Any]:
    worst = tally.lag.percentile(100)
    why = []
    if tally.busiest_share > _BUSY_GENERATOR:
        why.append(f"the busiest load process used {tally.busiest_share:.2f} cores")
    if worst > _WORST_LAG_S or tally.late_share > _LATE_SHARE:
        why.append(
            f"a load process's event loop was late by up to {worst:.2f} s, and by more than "
            f"{LATE_S * 1000:.0f} ms for {tally.late_share:.0%} of the time"
        )
    if tally.unsent:
        why.append(f"{tally.unsent} requests could not be sent when they were due")
    return {
        "busiest_cpu_share": round(tally.busiest_share, 3),
        "loop_lag_p95_ms": _ms(tally.lag.percentile(95)),
        "loop_lag_worst_ms": _ms(worst),
        "loop_late_share": round(tally.late_share, 4),
        "is_bottleneck": bool(why),
        "why": why,
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _over(part: float, whole: float) -> float | None:
    return part / whole if whole else None
