"""A run's curves as one PNG."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from fedsea_mq.cli.train.record import RunRecord


def plot_run(record: RunRecord, file: Path) -> None:
    """Loss of each member by step, and of the rounds, with what was held out."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    loss, rounds = figure.subplots(1, 2)
    for name, member in record.by_name():
        steps = range(1, len(member.losses) + 1)
        loss.plot(steps, member.losses, label=name, alpha=0.8, linewidth=1)
    loss.set(title="training loss", xlabel="step", ylabel="nats a token", yscale="log")
    if record.members:
        loss.legend()
    closed = sorted(record.rounds.items())
    at, losses = [number + 1 for number, _ in closed], [said["loss"] for _, said in closed]
    rounds.plot(at, losses, "k--", label="training")
    for name, member in record.by_name():
        if member.held_out:
            numbers = sorted(member.held_out)
            held_out = [member.held_out[number] for number in numbers]
            rounds.plot([number + 1 for number in numbers], held_out, label=f"held out, {name}")
    rounds.set(title="rounds", xlabel="round", ylabel="nats a token", yscale="log")
    rounds.legend()
    figure.savefig(file, dpi=110)
