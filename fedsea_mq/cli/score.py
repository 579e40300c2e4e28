"""`fedsea eval` and `fedsea sweep`: tasks, answered by the split system."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch

from fedsea_mq.cli.output import print_table, progress_bar
from fedsea_mq.cli.processes import LocalSystem
from fedsea_mq.entry import configure_logging
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.settings import Settings
from fedsea_mq.tasks.evaluation import Responder, evaluate
from fedsea_mq.tasks.registry import embedded_tasks
from fedsea_mq.tasks.task import Example, Scores, Task, Wanted
from nodes.client import ClientNode

_TITLES: Final = {
    "understanding_accuracy": "understanding",
    "conversation_f1": "conversation F1",
    "conversation_exact": "exact",
    "summary_rouge_l": "summary ROUGE-L",
}
# What noise may cost is counted in one score a task; exact match follows F1.
_COUNTED: Final = ("understanding_accuracy", "conversation_f1", "summary_rouge_l")


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of one noise setting at one cut. `sigma` is a standard deviation."""

    scores: Scores
    sigma: float
    sigma_over_head_rms: float
    cut: str

    def as_json(self) -> dict[str, Any]:
        """The scores as a JSON object."""
        return {
            **{name: round(score, 4) for name, score in self.scores.items()},
            "sigma": round(self.sigma, 6),
            "sigma_over_head_rms": round(self.sigma_over_head_rms, 4),
            "cut": self.cut,
        }


@dataclass(frozen=True, slots=True)
class Asked:
    """A task and the examples that are asked of it."""

    task: Task
    examples: list[Example]

    @classmethod
    def of(cls, task: Task, wanted: Wanted) -> Asked:
        """The examples that are wanted. Raises `TaskDataError`."""
        return cls(task, list(task.source.examples(wanted)))

    @property
    def units(self) -> int:
        """What `n` counts: questions with all their answers, dialogues with all their turns."""
        return len({example.unit for example in self.examples})


def embedded(count: int, seed: int) -> list[Asked]:
    """`count` examples of each of the embedded three, in held-out worlds."""
    return [Asked.of(task, Wanted(count=count, seed=seed)) for task in embedded_tasks()]


async def score(
    settings: Settings, noises: Sequence[dict[str, Any]], asked: Sequence[Asked], *, join: bool
) -> list[Scored]:
    """Score each noise setting on the same questions.

    With `join`, on the broker that the settings name; otherwise on processes started for it.
    """
    configure_logging(settings.log)
    torch.set_num_threads(settings.model.threads)
    answers = sum(len(one.examples) for one in asked)
    with progress_bar() as progress:
        task = progress.add_task("answers", total=len(noises) * answers)
        async with _system(settings, join=join) as running:
            return [
                await _score_one(
                    running.replace(noise=noise), asked, lambda: progress.advance(task)
                )
                for noise in noises
            ]


@asynccontextmanager
async def _system(settings: Settings, *, join: bool) -> AsyncIterator[Settings]:
    if join:
        yield settings
        return
    async with LocalSystem(settings) as system:
        yield system.settings


class SplitModel:
    """The split system as evaluation needs a model."""

    def __init__(self, client: ClientNode) -> None:
        self._client = client
        self.log_likelihoods = client.log_likelihoods

    async def generate_text(self, prompt: Sequence[int], max_new_tokens: int) -> str:
        """Greedy; see `ClientNode.generate`."""
        sampling = SamplingSettings(max_new_tokens=max_new_tokens)
        return (await self._client.generate(prompt, sampling).complete()).text


async def _score_one(
    settings: Settings, asked: Sequence[Asked], on_answer: Callable[[], None]
) -> Scored:
    scores: Scores = {}
    async with ClientNode(settings) as client:
        model = SplitModel(client)
        for one in asked:
            limits = one.task.limits.within(client.model.max_positions)
            respond = Responder(model, client.tokenizer, limits)
            found = await evaluate(one.examples, one.task.score, respond, on_answer=on_answer)
            scores |= told_apart(scores, one.task.name, found)
        sigma, rms = client.noise_std, client.model.head_rms
    cut = f"{settings.model.head_blocks}+{settings.model.tail_blocks}"
    return Scored(scores, sigma, sigma / rms, cut)


def told_apart(scores: Scores, task: str, found: Scores) -> Scores:
    """What was found for a task; a score named as one of another task has the task's name, too."""
    return {f"{task} {name}" if name in scores else name: score for name, score in found.items()}


def points_below(scores: Scores, other: Scores) -> float:
    """The largest loss against `other` in any of the embedded three, in percentage points."""
    lost = max(other[name] - scores[name] for name in _COUNTED)
    # Two questions of two hundred are one point, not a rounding error more than one.
    return round(100 * lost, 9)


def largest_harmless(noise_free: Scored, noised: Sequence[Scored], points: float) -> Scored | None:
    """The largest sigma up to which no task loses more than `points` against noise-free.

    Sigmas above the first that fails do not count, even if chance lets one pass.
    """
    harmless = None
    for one in sorted(noised, key=lambda scored: scored.sigma):
        if points_below(one.scores, noise_free.scores) > points:
            break
        harmless = one
    return harmless


def print_scores(title: str, scored: Sequence[Scored]) -> None:
    """One row a noise setting."""
    names = list(scored[0].scores)
    print_table(
        title,
        ["noise/RMS", "sigma", *(_TITLES.get(name, name) for name in names), "cut"],
        [
            (
                f"{one.sigma_over_head_rms:.2f}" if one.sigma else "off",
                f"{one.sigma:.4f}",
                *(_cell(name, one.scores[name]) for name in names),
                one.cut,
            )
            for one in scored
        ],
    )


def _cell(name: str, score: float) -> str:
    return f"{score:.3f}" if "rouge" in name else f"{score:.1%}"
