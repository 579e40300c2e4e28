"""The audit's plots: recovery over noise, recovery against utility, and a map of cut and noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsea_mq.cli.audit.grid import ISOTROPIC, PAPER
from fedsea_mq.cli.audit.report import Row, strongest


def plot_audit(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Three PNG files in `folder`, which exists; the first and the last of noise alone."""
    noise_alone = [row for row in rows if row["defence"] in (ISOTROPIC, PAPER)]
    drawn = {
        "recovery.png": _over_noise(noise_alone),
        "front.png": _front(rows),
        "map.png": _map(noise_alone),
    }
    for name, figure in drawn.items():
        figure.savefig(folder / name, dpi=110)
    return [folder / name for name in drawn]


def _over_noise(rows: Sequence[Row]) -> Figure:
    """One panel a cut: what each attack recovers, and what the tasks still score."""
    cuts = list(dict.fromkeys(row["cut"] for row in rows))
    figure = Figure(figsize=(4.5 * len(cuts) + 1, 4.2), layout="constrained")
    panels = figure.subplots(1, len(cuts), squeeze=False)[0]
    for cut, panel in zip(cuts, panels, strict=True):
        here = [row for row in rows if row["cut"] == cut]
        for attack in dict.fromkeys(row["attack"] for row in here):
            _curve(panel, [row for row in here if row["attack"] == attack], attack)
        _utility(panel, here)
        panel.set(title=f"cut {cut}", xlabel="noise / RMS", ylabel="%", ylim=(-2, 102))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _curve(panel: Axes, rows: Sequence[Row], label: str) -> None:
    ordered = sorted(rows, key=lambda row: row["sigma"])
    at = [row["sigma_over_head_rms"] for row in ordered]
    found = np.array([100 * row["token_recovery"] for row in ordered])
    bounds = np.array([[100 * bound for bound in row["ci"]] for row in ordered])
    spread = np.abs(bounds.T - found)
    panel.errorbar(at, found, spread, label=label, marker="o", markersize=3, capsize=2, linewidth=1)


def _utility(panel: Axes, rows: Sequence[Row]) -> None:
    by_noise = {row["sigma_over_head_rms"]: 100 * row["utility"] for row in rows}
    at = sorted(by_noise)
    panel.plot(at, [by_noise[one] for one in at], "k--", linewidth=1.5, label="tasks score")


def _front(rows: Sequence[Row]) -> Figure:
    """Each setting by its strongest attack: what is useful and hidden is at the lower right."""
    figure = Figure(figsize=(6.5, 4.8), layout="constrained")
    panel = figure.subplots()
    best = strongest(rows)
    for defence in dict.fromkeys(row["defence"] for row in best):
        here = [row for row in best if row["defence"] == defence]
        at = [100 * row["utility"] for row in here]
        panel.scatter(at, [100 * row["token_recovery"] for row in here], label=defence, s=22)
    panel.set(xlabel="tasks score, %", ylabel="tokens recovered, %", xlim=(-2, 102), ylim=(-2, 102))
    panel.legend()
    return figure


def _map(rows: Sequence[Row]) -> Figure:
    """Cut by noise: the share of tokens that the strongest attack recovers."""
    best = {(row["cut"], row["sigma_over_head_rms"]): row for row in strongest(rows)}
    cuts = list(dict.fromkeys(cut for cut, _ in best))
    noises = sorted({round(noise, 2) for _, noise in best})
    shares = np.full((len(cuts), len(noises)), np.nan)
    for (cut, noise), row in best.items():
        shares[cuts.index(cut), noises.index(round(noise, 2))] = 100 * row["token_recovery"]
    figure = Figure(figsize=(1.0 * len(noises) + 2, 0.7 * len(cuts) + 1.5), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(shares, vmin=0, vmax=100, cmap="magma_r", aspect="auto")
    panel.set(xlabel="noise / RMS", ylabel="cut")
    panel.set_xticks(range(len(noises)), labels=[f"{noise:g}" for noise in noises])
    panel.set_yticks(range(len(cuts)), labels=cuts)
    for (y, x), share in np.ndenumerate(shares):
        if np.isfinite(share):
            colour = "white" if share > 50 else "black"
            panel.text(x, y, f"{share:.0f}", ha="center", va="center", color=colour)
    figure.colorbar(image, label="tokens recovered, %")
    return figure
