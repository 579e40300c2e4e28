"""A run's curves as one PNG."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from fedsea_mq.cli.train.record import RunRecord


def plot_run(record: RunRecord, file: Path) -> None:
    """Loss of each member by step, and what was held out by round, if anything was."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    loss, rounds = figure.subplots(1, 2)
    for member in sorted(record.steps):
        values = record.losses(member)
        loss.plot(range(1, len(values) + 1), values, label=member, alpha=0.8, linewidth=1)
    loss.set(title="training loss", xlabel="step", ylabel="nats a token", yscale="log")
    if record.steps:
        loss.legend()
    closed = [seen for _, seen in sorted(record.rounds.items())]
    rounds.plot(
        [seen.round + 1 for seen in closed], [seen.loss for seen in closed], "k--", label="training"
    )
    for member, by_round in sorted(record.validations.items()):
        at = sorted(by_round)
        rounds.plot(
            [n + 1 for n in at], [by_round[n].loss for n in at], label=f"held out, {member}"
        )
    rounds.set(title="rounds", xlabel="round", ylabel="nats a token", yscale="log")
    rounds.legend()
    figure.savefig(file, dpi=110)
