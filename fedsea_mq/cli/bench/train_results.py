"""What fine-tuning brings: federated with noise, against alone, pooled, and not at all.

For each cut and seed a task's examples are divided among clients, skewed by class. Then are scored,
on held-out examples, `training.validation` of records that nobody trains on or, without it, those
of the task's validation split:

- `zero-shot`: the model as it is, at each noise;
- `alone`: each client by itself, trained and scored at some noises; the mean over the clients;
- `federated`: all clients together, trained and scored at each noise, and without noise;
- `pooled`: one client with all examples, without noise, as many a step as all take together.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

from fedsea_mq.cli.bench.clients_here import adapters_of_a_run
from fedsea_mq.cli.bench.kept_scores import KeptScores, Place
from fedsea_mq.cli.output import progress_console
from fedsea_mq.cli.score import Asked, score
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.run_settings import TrainingSection
from fedsea_mq.settings import Settings, relative_noise
from fedsea_mq.tasks.registry import find
from fedsea_mq.tasks.task import Scores, Split, Wanted
from nodes.trainer.examples import Examples, held_out_examples, load_examples

_OFF: Final = 0.0
_NAME: Final = "trained"


@dataclass(frozen=True, slots=True)
class Grid:
    """What is trained and scored; noise scales are relative to the head output's RMS."""

    cuts: Sequence[tuple[int, int]]
    seeds: Sequence[int]
    scales: Sequence[float]
    alone_scales: Sequence[float]
    asked: int


@dataclass(frozen=True, slots=True)
class Row:
    """One arm at one cut and noise, scored once a seed."""

    cut: str
    arm: str
    scale: float
    scores: list[Scores]

    def as_json(self) -> dict[str, Any]:
        """Mean and standard deviation of each score over the seeds, and of the scores' mean."""
        named = {name: [one[name] for one in self.scores] for name in self.scores[0]}
        named["mean"] = [fmean(one.values()) for one in self.scores]
        return {
            "cut": self.cut,
            "arm": self.arm,
            "noise_over_rms": self.scale,
            "seeds": len(self.scores),
            "scores": {name: round(fmean(values), 4) for name, values in named.items()},
            "spread": {
                name: round(stdev(values), 4) if len(values) > 1 else None
                for name, values in named.items()
            },
        }


async def train_results(settings: Settings, grid: Grid, kept: KeptScores) -> list[dict[str, Any]]:
    """Train and score everything that is not kept yet; one row for each cut, arm and noise."""
    found: dict[tuple[str, str, float], Row] = {}
    for head, tail in grid.cuts:
        for seed in grid.seeds:
            cell = _Cell.of(settings, (head, tail), seed, grid)
            for arm in cell.arms():
                places = [Place(f"{head}+{tail}", seed, arm.name, scale) for scale in arm.scales]
                if any(kept.find(place) is None for place in places):
                    for place, scores in zip(places, await arm.find(), strict=True):
                        kept.add(place, scores)
                        progress_console.print(f"{place}: {scores}", style="dim")
                for place in places:
                    key = (place.cut, place.arm, place.scale)
                    found.setdefault(key, Row(*key, [])).scores.append(kept.of(place))
    arms = list(dict.fromkeys((cut, arm) for cut, arm, _ in found))
    in_order = sorted(found, key=lambda key: (arms.index(key[:2]), key[2]))
    return [found[key].as_json() for key in in_order]


@dataclass(frozen=True, slots=True)
class _Arm:
    """What is trained and scored in one go, at these noises."""

    name: str
    scales: Sequence[float]
    find: Callable[[], Awaitable[Sequence[Scores]]]


@dataclass(frozen=True, slots=True)
class _Cell:
    """One cut and seed."""

    settings: Settings
    grid: Grid
    shards: Mapping[str, Examples]
    asked: Asked

    @classmethod
    def of(cls, settings: Settings, cut: tuple[int, int], seed: int, grid: Grid) -> _Cell:
        settings = settings.replace(
            model={"head_blocks": cut[0], "tail_blocks": cut[1]}, training={"seed": seed}
        )
        training = settings.training
        checkpoint = Checkpoint.open(settings.model.path)
        shards = {}
        for number in range(training.clients):
            one = load_examples(training.model_copy(update={"shard": number}), checkpoint)
            shards[f"client-{number + 1}"] = replace(one, validation=())
        return cls(settings, grid, shards, _asked(training, grid.asked))

    def arms(self) -> Iterator[_Arm]:
        """All of them."""
        yield _Arm("zero-shot", self._scales, partial(self._score, None, self._scales))
        for scale in self.grid.alone_scales:
            yield _Arm("alone", [scale], partial(self._alone, scale))
        for scale in self._scales:
            yield _Arm("federated", [scale], partial(self._trained, self.shards, scale))
        yield _Arm("pooled", [_OFF], partial(self._trained, {"pooled": self._pool()}, _OFF))

    async def _alone(self, scale: float) -> list[Scores]:
        """The mean over the clients."""
        each = [
            scores
            for name, one in self.shards.items()
            for scores in await self._trained({name: one}, scale)
        ]
        return [{name: fmean(one[name] for one in each) for name in each[0]}]

    @property
    def _scales(self) -> list[float]:
        return [_OFF, *self.grid.scales]

    def _pool(self) -> Examples:
        return Examples([one for shard in self.shards.values() for one in shard.train])

    async def _trained(self, shards: Mapping[str, Examples], scale: float) -> list[Scores]:
        """Train on these shards at this noise, and score the result at the same."""
        with tempfile.TemporaryDirectory(prefix="fedsea-results-") as name:
            training = self.settings.training
            # As many examples a step, whoever takes part.
            batch = training.batch_size * (training.clients if "pooled" in shards else 1)
            settings = self.settings.replace(
                noise=relative_noise(scale),
                training={
                    "clients": len(shards),
                    "batch_size": batch,
                    "alpha": None,
                },
            )
            trained = await adapters_of_a_run(settings, shards, Path(name))
            return await self._score(trained, [scale])

    async def _score(self, adapter: Path | None, scales: Sequence[float]) -> list[Scores]:
        settings = self.settings
        if adapter is not None:
            held = {_NAME: str(adapter)}
            settings = settings.replace(
                trunk={"adapters": held}, client={"adapters": held, "adapter": _NAME}
            )
        noises = [relative_noise(scale) for scale in scales]
        scored = await score(settings, noises, [self.asked], join=False)
        return [one.scores for one in scored]


def _asked(training: TrainingSection, count: int) -> Asked:
    task = find(training.task, training.data)
    if training.validation:
        return Asked(task, held_out_examples(training))
    return Asked.of(task, Wanted(Split.VALIDATION, count, 1000))


def markdown_rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The table, a line a row."""
    names = list(rows[0]["scores"])
    yield "| cut | arm | noise/RMS | " + " | ".join(names) + " |"
    yield "|---|---|---|" + "---|" * len(names)
    for row in rows:
        cells = [_cell(row["scores"][name], row["spread"][name]) for name in names]
        scale = f"{row['noise_over_rms']:g}" if row["noise_over_rms"] else "off"
        yield f"| {row['cut']} | {row['arm']} | {scale} | " + " | ".join(cells) + " |"


def _cell(mean: float, spread: float | None) -> str:
    return f"{100 * mean:.1f}" if spread is None else f"{100 * mean:.1f} ± {100 * spread:.1f}"
