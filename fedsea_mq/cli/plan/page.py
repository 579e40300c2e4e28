"""A plan for people and for machines."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from fedsea_mq.cli.output import console, print_table
from fedsea_mq.cli.plan.planner import Plan
from fedsea_mq.planning.choice import Option, pareto_front

_MB: Final = 1e6
_COLUMNS: Final = (
    "cut",
    "fits",
    "read",
    "TTFT ms",
    "TPOT ms",
    "B up",
    "B down",
    "client MB",
    "trunk MB",
    "room",
    "tokens/s",
)


def as_rows(plan: Plan, price_per_hour: float | None) -> dict[str, Any]:
    """The plan as JSON: every cut, in seconds' thousandths and bytes."""
    front = {one.forecast.cut for one in pareto_front(plan.options)}
    chosen = plan.recommendation
    return {
        "model": plan.model,
        "architecture": asdict(plan.architecture),
        "demand": asdict(plan.wanted.demand),
        "link": {"round_trip_ms": 2 * plan.wanted.link.delay_ms, "mbps": plan.wanted.link.mbps},
        "client_memory_bytes": plan.wanted.client_memory,
        "cuts": [
            _row(one, price_per_hour) | {"on_front": one.forecast.cut in front}
            for one in plan.options
        ],
        "recommended": None
        if chosen is None
        else {"cut": str(chosen.option.forecast.cut), "reason": chosen.reason},
        "speeds": {
            "client": plan.client.model_dump(mode="json"),
            "trunk": plan.trunk.model_dump(mode="json"),
        },
    }


def _row(option: Option, price_per_hour: float | None) -> dict[str, Any]:
    said, found = option.forecast, option.finding
    cost = None if price_per_hour is None else said.cost_per_million(price_per_hour)
    return {
        "cut": str(said.cut),
        "fits": option.fits,
        "depth": option.depth,
        "audited": None if found is None else {"recovery": found.share, "noise": found.noise},
        "ttft_ms": said.ttft_s * 1000,
        "tpot_ms": said.tpot_s * 1000,
        "request_bytes": asdict(said.request),
        "token_bytes": asdict(said.token),
        "client_bytes": said.client_bytes,
        "trunk_bytes": said.trunk_bytes,
        "node_sessions": said.node_sessions,
        "sessions": said.sessions,
        "shared_tpot_ms": said.shared_tpot_s * 1000,
        "node_tokens_per_s": said.node_tokens_per_s,
        "cost_per_million_tokens": cost,
    }


def print_plan(plan: Plan, price_per_hour: float | None, *, every: bool) -> None:
    """The cuts that no other beats, or every one; then which to take, and why."""
    shown = plan.options if every else pareto_front(plan.options)
    priced = price_per_hour is not None
    columns = (*_COLUMNS, "cost/M") if priced else _COLUMNS
    fitting = sum(one.fits for one in plan.options)
    print_table(
        f"{plan.model}: {len(plan.options)} cuts, {fitting} fit, {len(shown)} shown",
        columns,
        [_cells(one, price_per_hour) for one in shown],
    )
    demand = plan.wanted.demand
    console.print(
        f"Requests of {demand.prompt} tokens and {demand.new} new ones. read: share of the prompt "
        "that an audit recovered, ? if not audited. TTFT, TPOT, bytes a token: of a session alone. "
        f"room: sessions that fit on a node. trunk, tokens/s: of a node with {demand.sessions} "
        "sessions, or as many as fit.",
        style="dim",
    )
    if plan.recommendation is None:
        console.print("No cut fits: give the client more memory, or the trunk more for KV.")
        return
    console.print(plan.recommendation.reason, markup=False, soft_wrap=True)


def _cells(option: Option, price_per_hour: float | None) -> list[str]:
    said, found = option.forecast, option.finding
    cells = [
        str(said.cut),
        "yes" if option.fits else "NO",
        "?" if found is None else f"{found.share:.0%}",
        f"{said.ttft_s * 1000:.0f}",
        f"{said.tpot_s * 1000:.1f}",
        f"{said.token.up}",
        f"{said.token.down}",
        f"{said.client_bytes / _MB:.0f}",
        f"{said.trunk_bytes / _MB:.0f}",
        f"{said.node_sessions}",
        f"{said.node_tokens_per_s:.{0 if said.node_tokens_per_s >= 10 else 1}f}",
    ]
    if price_per_hour is not None:
        cost = said.cost_per_million(price_per_hour)
        cells.append("-" if cost is None else f"{cost:.2f}")
    return cells
