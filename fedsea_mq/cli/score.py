"""`fedsea eval` and `fedsea sweep`: the embedded tasks, answered by the split system."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fedsea_mq.cli.output import progress_bar
from fedsea_mq.cli.processes import LocalSystem
from fedsea_mq.entry import configure_logging
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.settings import Settings
from fedsea_mq.tasks.evaluation import TaskScores, evaluate, questions
from fedsea_mq.tasks.examples import Message
from nodes.client import ClientNode

_SAMPLING = SamplingSettings(max_new_tokens=64)


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of one noise setting at one cut. `sigma` is a standard deviation."""

    scores: TaskScores
    sigma: float
    sigma_over_head_rms: float
    cut: str

    def as_json(self) -> dict[str, Any]:
        """The scores as a JSON object."""
        return {
            **{name: round(score, 4) for name, score in asdict(self.scores).items()},
            "sigma": round(self.sigma, 6),
            "sigma_over_head_rms": round(self.sigma_over_head_rms, 4),
            "cut": self.cut,
        }


async def score(
    settings: Settings, noises: Sequence[dict[str, Any]], *, count: int, seed: int, join: bool
) -> list[Scored]:
    """Score each noise setting on the same questions.

    With `join`, on the broker that the settings name; otherwise on processes started for it.
    """
    configure_logging(settings.log)
    torch.set_num_threads(settings.model.threads)
    with progress_bar() as progress:
        task = progress.add_task("answers", total=len(noises) * questions(count, seed))
        async with _system(settings, join=join) as running:
            return [
                await _score_one(
                    running.replace(noise=noise), count, seed, lambda: progress.advance(task)
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


async def _score_one(
    settings: Settings, count: int, seed: int, on_answer: Callable[[], None]
) -> Scored:
    async with ClientNode(settings) as client:

        async def answer(messages: list[Message]) -> str:
            return (await client.chat(messages, _SAMPLING).complete()).text

        scores = await evaluate(answer, examples_a_task=count, seed=seed, on_answer=on_answer)
        sigma, rms = client.noise_std, client.model.head_rms
    cut = f"{settings.model.head_blocks}+{settings.model.tail_blocks}"
    return Scored(scores, sigma, sigma / rms, cut)


def largest_harmless(noise_free: Scored, noised: Sequence[Scored], points: float) -> Scored | None:
    """The largest sigma up to which no task loses more than `points` against noise-free.

    Sigmas above the first that fails do not count, even if chance lets one pass.
    """
    harmless = None
    for one in sorted(noised, key=lambda scored: scored.sigma):
        if one.scores.points_below(noise_free.scores) > points:
            break
        harmless = one
    return harmless
