"""Score whatever answers chat messages on the embedded tasks, in held-out worlds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import fmean

from fedsea_mq.tasks.examples import Example, Message, Task, examples
from fedsea_mq.tasks.metrics import RougeL, exact_match, same_verdict, token_f1

Answer = Callable[[list[Message]], Awaitable[str]]
Score = Callable[[str, str], float]


@dataclass(frozen=True, slots=True)
class TaskScores:
    """The three tasks' scores, each from 0 to 1."""

    understanding_accuracy: float
    conversation_f1: float
    conversation_exact: float
    """The share of answers that are right as a whole, where F1 counts their words."""
    summary_rouge_l: float

    def points_below(self, other: TaskScores) -> float:
        """The largest loss against `other` in any task, in percentage points."""
        lost = max(
            other.understanding_accuracy - self.understanding_accuracy,
            other.conversation_f1 - self.conversation_f1,
            other.summary_rouge_l - self.summary_rouge_l,
        )
        # Two questions of two hundred are one point, not a rounding error more than one.
        return round(100 * lost, 9)


async def evaluate(
    answer: Answer,
    *,
    examples_a_task: int,
    seed: int,
    at_once: int = 16,
    on_answer: Callable[[], None] = lambda: None,
) -> TaskScores:
    """Mean scores over `examples_a_task` held-out examples of each task.

    A conversation's turns are asked with the right answers before them, as CoQA's are.
    """
    gate = asyncio.Semaphore(at_once)

    async def said_and_right(example: Example, turn: int) -> tuple[str, str]:
        async with gate:
            said = await answer(example.messages(turn))
        on_answer()
        return said, example.turns[turn].answer

    async def answered(task: Task) -> list[tuple[str, str]]:
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(said_and_right(example, turn))
                for example in examples(task, seed, examples_a_task)
                for turn in range(len(example.turns))
            ]
        return [one.result() for one in asked]

    conversation = await answered(Task.CONVERSATION)
    return TaskScores(
        understanding_accuracy=_mean(same_verdict, await answered(Task.UNDERSTANDING)),
        conversation_f1=_mean(token_f1, conversation),
        conversation_exact=_mean(exact_match, conversation),
        summary_rouge_l=_mean(RougeL(), await answered(Task.SUMMARY)),
    )


def _mean(score: Score, answers: list[tuple[str, str]]) -> float:
    return fmean(score(said, right) for said, right in answers)


def questions(examples_a_task: int, seed: int) -> int:
    """How many answers `evaluate` asks for."""
    return sum(
        len(example.turns)
        for task in (Task.UNDERSTANDING, Task.CONVERSATION, Task.SUMMARY)
        for example in examples(task, seed, examples_a_task)
    )
