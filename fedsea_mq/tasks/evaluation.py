"""Score whatever answers chat messages on the embedded tasks, in held-out worlds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import fmean

from fedsea_mq.tasks.examples import Example, Message, Task, examples
from fedsea_mq.tasks.metrics import RougeL, exact_match, token_f1

Answer = Callable[[list[Message]], Awaitable[str]]
Score = Callable[[str, str], float]


@dataclass(frozen=True, slots=True)
class TaskScores:
    """The three tasks' scores, each from 0 to 1."""

    understanding_accuracy: float
    conversation_f1: float
    summary_rouge_l: float

    def points_below(self, other: TaskScores) -> float:
        """The largest loss against `other` in any task, in percentage points."""
        return 100 * max(
            other.understanding_accuracy - self.understanding_accuracy,
            other.conversation_f1 - self.conversation_f1,
            other.summary_rouge_l - self.summary_rouge_l,
        )


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

    async def mean(task: Task, score: Score) -> float:
        async def scored(example: Example, turn: int) -> float:
            async with gate:
                said = await answer(example.messages(turn))
            on_answer()
            return score(said, example.turns[turn].answer)

        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(scored(example, turn))
                for example in examples(task, seed, examples_a_task)
                for turn in range(len(example.turns))
            ]
        return fmean(task.result() for task in asked)

    return TaskScores(
        understanding_accuracy=await mean(Task.UNDERSTANDING, exact_match),
        conversation_f1=await mean(Task.CONVERSATION, token_f1),
        summary_rouge_l=await mean(Task.SUMMARY, RougeL()),
    )


def questions(examples_a_task: int, seed: int) -> int:
    """How many answers `evaluate` asks for."""
    return sum(
        len(example.turns)
        for task in (Task.UNDERSTANDING, Task.CONVERSATION, Task.SUMMARY)
        for example in examples(task, seed, examples_a_task)
    )
