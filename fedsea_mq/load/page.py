"""A load test's report as a page for people."""

from __future__ import annotations

from typing import Any, Final

from fedsea_mq.load.plan import Arrivals, Lengths, Link

_LATENCIES: Final = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "itl_ms": "ITL", "e2e_ms": "end to end"}


def markdown(report: dict[str, Any]) -> str:
    """The report as a page; `-` where there is no sample."""
    lines = [
        "# Load test",
        "",
        *_plan(report),
        "",
        *_figures(report),
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


def _plan(report: dict[str, Any]) -> list[str]:
    plan = report["plan"]
    ended = [f"{plan[key]:.0%} {said}" for key, said in _FATES.items() if plan[key]]
    return [
        f"{len(plan['sessions'])} {plan['kind']} clients, {sum(plan['sessions'])} sessions; "
        f"{_arrivals(plan)}; link: {_link(Link(**plan['link']))}.",
        "",
        f"Of {plan['duration_s']:g} s, {report['measured_s']:g} s are measured; seed "
        f"{plan['seed']}{''.join(f'; {one}' for one in ended)}.",
        "",
        "; ".join(f"{key}: {_said(value)}" for key, value in report["system"].items()),
    ]


_FATES: Final = {"stops": "stop half way", "vanishes": "vanish half way"}


def _said(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _arrivals(plan: dict[str, Any]) -> str:
    lengths = (
        f"prompt {Lengths(**plan['prompt'])} and new {Lengths(**plan['new'])} tokens a request"
    )
    match Arrivals(plan["arrivals"]):
        case Arrivals.CLOSED:
            return f"closed loop; {lengths}"
        case Arrivals.POISSON:
            return f"poisson arrivals, {plan['rate']:g} requests/s; {lengths}"
        case Arrivals.BURSTS:
            return f"{plan['rate']:g} requests/s in bursts of {plan['burst']}; {lengths}"
        case Arrivals.TRACE:
            return f"a trace of {plan['trace']} requests"


def _link(link: Link) -> str:
    if link.is_plain:
        return "plain"
    speed = "no limit" if link.mbps is None else f"{link.mbps:g} Mbit/s"
    return (
        f"{link.delay_ms:g} ms each way, jitter {link.jitter_ms:g} ms, {speed}, "
        f"{link.loss:.1%} lost"
    )


def _figures(report: dict[str, Any]) -> list[str]:
    requests, goodput = report["requests"], report["goodput"]
    counted = ", ".join(f"{n} {name}" for name, n in requests.items() if n and name != "errors")
    slo = goodput["slo"]
    outside = report["errors_outside"]
    also = f"; outside the measured time: {_errors(report, outside)}" if outside else ""
    return [
        f"- requests: {counted or 'none'}; errors: {_errors(report, requests['errors'])}{also}",
        f"- throughput: {report['tokens_per_s']:.1f} tokens/s",
        f"- goodput: {goodput['requests_per_s']:.2f} requests/s and "
        f"{goodput['tokens_per_s']:.1f} tokens/s; {_share(goodput['share'])} of the requests were "
        f"within TTFT {slo['ttft_ms']:g} ms and TPOT {slo['tpot_ms']:g} ms",
        f"- trunk: busy {_share(report['trunk_busy'])}, mean batch "
        f"{_number(report['mean_batch'], '.1f')}, at most {_number(report['sessions_peak'], 'd')} "
        f"sessions at a time, {_number(report['kv_reserved_peak'], ',d')} KV positions reserved at "
        f"most, {_number(report['kv_used'], '.2%')} of all",
        f"- fairness (Jain, tokens by client): {_number(report['jain'], '.3f')}",
        f"- busy replies: {report['refusals']}",
        f"- bytes: {report['bytes_up']:,} up, {report['bytes_down']:,} down; "
        f"{_share(report['direct_share'])} of the round trips past the broker",
    ]


def _errors(report: dict[str, Any], errors: dict[str, int]) -> str:
    said = report["errors_said"]
    told = (
        f"{n} {name} ({said[name]})" if name in said else f"{n} {name}"
        for name, n in errors.items()
    )
    return ", ".join(told) or "none"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _share(value: float | None) -> str:
    return _number(value, ".1%")


def _row(name: str, percentiles: dict[str, float | None]) -> str:
    cells = (_number(value, ".1f") for value in percentiles.values())
    return f"| {name} | " + " | ".join(cells) + " |"


def _generator_line(generator: dict[str, Any]) -> str:
    if generator["is_bottleneck"]:
        return (
            f"**The load generator was a bottleneck**: {'; '.join(generator['why'])}. The system "
            "may be better than these figures; try more `--processes` or fewer clients."
        )
    cpu = f"the busiest load process used {generator['busiest_cpu_share']:.2f} cores"
    return f"The load generator kept up: {cpu}."
