"""What fine-tuning brings, over the noise, as one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def plot_results(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """The mean of a task's scores by noise, one panel a cut; what has one noise is a point."""
    cuts = list(dict.fromkeys(row["cut"] for row in rows))
    figure = Figure(figsize=(4.5 * len(cuts) + 1, 4), layout="constrained")
    panels = figure.subplots(1, len(cuts), squeeze=False)[0]
    for cut, panel in zip(cuts, panels, strict=True):
        for arm in dict.fromkeys(row["arm"] for row in rows):
            chosen = [row for row in rows if (row["cut"], row["arm"]) == (cut, arm)]
            chosen.sort(key=lambda row: row["noise_over_rms"])
            at = [row["noise_over_rms"] for row in chosen]
            mean = [100 * row["scores"]["mean"] for row in chosen]
            spread = [100 * (row["spread"]["mean"] or 0.0) for row in chosen]
            panel.errorbar(at, mean, spread, label=arm, marker="o", capsize=3, linewidth=1)
        panel.set(title=f"cut {cut}", xlabel="noise / RMS", ylabel="mean score, %", ylim=(0, 102))
        panel.legend()
    figure.savefig(file, dpi=110)
