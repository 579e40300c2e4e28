"""A load test's report: one dictionary for machines, one page for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from fedsea_mq.load.histogram import Histogram
from fedsea_mq.load.plan import LoadPlan
from fedsea_mq.load.samples import Sample, Samples
from fedsea_mq.load.tally import Outcome, Tally, jain

# Beyond these the figures say more about the load processes than about the system.
_BUSY_GENERATOR: Final = 0.85
_LATE_GENERATOR_S: Final = 0.05
_LATENCIES: Final = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "itl_ms": "ITL", "e2e_ms": "end to end"}


def build_report(plan: LoadPlan, tally: Tally, samples: Samples) -> dict[str, Any]:
    """Everything that was measured, in the field's terms.

    Rates are over the plan's duration after the warm-up; `occupancy` is the mean batch of a step
    over the sessions that the plan keeps going, for a closed loop.
    """
    measured_s = max(1e-9, plan.duration_s - plan.warmup_s)
    steady = samples.between(plan.warmup_s, plan.duration_s)
    batch, busy = _mean([s.batch for s in steady]), _mean([s.busy for s in steady])
    decode_s = tally.decode_until - tally.decode_from
    return {
        "plan": plan.model_dump(mode="json", exclude={"trace"}),
        "requests": {str(outcome): tally.outcomes[str(outcome)] for outcome in Outcome}
        | {"errors": dict(tally.errors), "unsent": tally.unsent},
        "ttft_ms": _percentiles(tally.ttft),
        "tpot_ms": _percentiles(tally.tpot),
        "itl_ms": _percentiles(tally.itl),
        "e2e_ms": _percentiles(tally.e2e),
        "new_tokens": tally.tokens,
        "tokens_per_s": _within(tally, measured_s) / measured_s,
        "decode_tokens_per_s": tally.decode_tokens / decode_s if decode_s > 0 else 0.0,
        "goodput": {
            "slo": plan.slo.model_dump(),
            "requests_per_s": tally.good / measured_s,
            "tokens_per_s": tally.good_tokens / measured_s,
            "share": tally.good / max(1, tally.e2e.count),
        },
        "mean_batch": batch,
        "occupancy": batch / sum(plan.sessions),
        "trunk_busy": busy,
        "kv_used": max((s.kv_used for s in steady), default=0.0),
        "jain": jain([tally.tokens_of[name] for name in sorted(tally.tokens_of)]),
        "refusals": tally.refusals,
        "direct_share": tally.direct_trips / max(1, tally.round_trips),
        "bytes_up": tally.bytes_up,
        "bytes_down": tally.bytes_down,
        "memory": _memory(samples.taken),
        "generator": _generator(tally),
    }


def _within(tally: Tally, seconds: float) -> int:
    return sum(count for at, count in tally.tokens_at.items() if 0 <= at < seconds)


def _percentiles(times: Histogram) -> dict[str, float | None]:
    read = {f"p{percent}": times.percentile(percent) for percent in (50, 95, 99)}
    return {
        name: None if math.isnan(value) else round(value * 1000, 3) for name, value in read.items()
    }


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
    lag = tally.lag.percentile(95)
    late = not math.isnan(lag) and lag > _LATE_GENERATOR_S
    return {
        "busiest_cpu_share": round(tally.busiest_share, 3),
        "loop_lag_p95_ms": None if math.isnan(lag) else round(lag * 1000, 2),
        "is_bottleneck": tally.busiest_share > _BUSY_GENERATOR or late or tally.unsent > 0,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    requests, goodput, plan = report["requests"], report["goodput"], report["plan"]
    counted = ", ".join(f"{n} {name}" for name, n in requests.items() if n and name != "errors")
    lines = [
        "# Load test",
        "",
        f"{len(plan['sessions'])} {plan['kind']} clients, {sum(plan['sessions'])} sessions, "
        f"{plan['arrivals']} arrivals, {plan['duration_s']:g} s.",
        "",
        f"- requests: {counted or 'none'}; errors: {_errors(requests['errors'])}",
        f"- throughput: {report['tokens_per_s']:.1f} tokens/s",
        f"- goodput: {goodput['requests_per_s']:.2f} requests/s, {goodput['share']:.1%} within "
        f"TTFT {goodput['slo']['ttft_ms']:g} ms and TPOT {goodput['slo']['tpot_ms']:g} ms",
        f"- trunk: busy {report['trunk_busy']:.1%}, mean batch {report['mean_batch']:.1f}, "
        f"KV reserved at most {report['kv_used']:.1%}",
        f"- fairness (Jain, tokens by client): {report['jain']:.3f}",
        f"- busy replies waited out: {report['refusals']}",
        f"- bytes: {report['bytes_up']:,} up, {report['bytes_down']:,} down; "
        f"{report['direct_share']:.0%} of the round trips past the broker",
        "",
        "| ms | p50 | p95 | p99 |",
        "|---|---|---|---|",
        *(_row(name, report[key]) for key, name in _LATENCIES.items()),
        "",
        "| memory, MB | a quarter in | at the end | at most |",
        "|---|---|---|---|",
        *(
            f"| {name} | {held['warm_mb']:.0f} | {held['end_mb']:.0f} | {held['peak_mb']:.0f} |"
            for name, held in report["memory"].items()
        ),
        "",
        _generator_line(report["generator"]),
    ]
    return "\n".join(lines) + "\n"


def _errors(errors: dict[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in errors.items()) or "none"


def _row(name: str, percentiles: dict[str, float | None]) -> str:
    cells = ("-" if value is None else f"{value:.1f}" for value in percentiles.values())
    return f"| {name} | " + " | ".join(cells) + " |"


def _generator_line(generator: dict[str, Any]) -> str:
    cpu = f"the busiest load process used {generator['busiest_cpu_share']:.2f} cores"
    if generator["is_bottleneck"]:
        return (
            f"**The load generator was a bottleneck**: {cpu}, or its loop was late. The system may "
            "be better than these figures; try more `--processes` or fewer clients."
        )
    return f"The load generator kept up: {cpu}."
