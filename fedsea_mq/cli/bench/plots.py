"""The benchmark's curves, as far as they were measured."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_WAYS = {
    "resend_with_mask_ms": "whole sequence and mask, again for each token",
    "resend_ms": "whole sequence, again for each token",
    "kv_collaboration_ms": "fedsea_mq",
}


def plot_serving(measured: dict[str, Any], file: Path) -> None:
    """Time a token over context, tokens/s over sessions; no file if neither was measured."""
    drawn = [
        (draw, measured[name])
        for name, draw in (("resending", _over_context), ("batching", _over_sessions))
        if name in measured
    ]
    if not drawn:
        return
    figure = Figure(figsize=(6 * len(drawn), 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axis, (draw, repeats) in zip(axes, drawn, strict=True):
        draw(axis, repeats)
    figure.savefig(file, dpi=120)


def _over_context(axis: Axes, repeats: list[dict[str, Any]]) -> None:
    contexts = repeats[0]["contexts"]
    for key, label in _WAYS.items():
        times = [median(column) for column in zip(*(one[key] for one in repeats), strict=True)]
        axis.plot(contexts, times, marker="o", label=label)
    axis.set(xscale="log", yscale="log", xlabel="context, tokens", ylabel="ms a token")
    axis.set_xticks(contexts, labels=[str(context) for context in contexts])
    axis.minorticks_off()
    axis.set_title("one client, decode")
    axis.legend()


def _over_sessions(axis: Axes, repeats: list[dict[str, Any]]) -> None:
    for context in sorted({int(name.split("x")[1]) for name in _runs(repeats[0])}):
        sizes = sorted(int(n.split("x")[0]) for n in _runs(repeats[0]) if n.endswith(f"x{context}"))
        names = [f"{size}x{context}" for size in sizes]
        rates = [median(one[name]["tokens_per_s"] for one in repeats) for name in names]
        turns = [median(one["in_turn_tokens_per_s"][name] for one in repeats) for name in names]
        (line,) = axis.plot(sizes, rates, marker="o", label=f"context {context}")
        axis.plot(
            sizes, turns, ls="--", color=line.get_color(), label=f"context {context}, in turn"
        )
    axis.set(xscale="log", yscale="log", xlabel="thin sessions", ylabel="tokens/s")
    axis.set_xticks([1, 4, 16, 64], labels=["1", "4", "16", "64"])
    axis.minorticks_off()
    axis.set_title("one trunk, decode")
    axis.legend()


def _runs(repeat: dict[str, Any]) -> list[str]:
    return [name for name in repeat if name[0].isdigit()]
