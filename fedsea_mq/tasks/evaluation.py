"""Ask a model the examples of a task, and score what it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from fedsea_mq.tasks.encoding import Encoder
from fedsea_mq.tasks.task import Answered, Example, Limits, Score, Scores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Respond = Callable[[Example], Awaitable[str]]


class LanguageModel(Protocol):
    """What evaluation needs of a model, in token ids."""

    async def generate_text(self, prompt: Sequence[int], max_new_tokens: int) -> str:
        """The most likely continuation, token by token, up to its end."""
        ...

    async def log_likelihoods(
        self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> list[float]:
        """The natural log-likelihood of each continuation's tokens, summed, given the prompt."""
        ...


class Responder:
    """A model's answers to examples.

    Candidates are compared by the log-likelihood of their tokens given the prompt, as the paper
    compares them (Tasks and prompts); without candidates the model says what it will.
    """

    def __init__(
        self, model: LanguageModel, tokenizer: PreTrainedTokenizerBase, limits: Limits
    ) -> None:
        self._model = model
        self._encoder = Encoder(tokenizer, limits.source_tokens)
        self._answer_tokens = limits.answer_tokens

    async def __call__(self, example: Example) -> str:
        """A candidate, or what was said. Raises as `Encoder` and the model do."""
        prompt = self._encoder.prompt(example.prompt)
        if not example.candidates:
            return (await self._model.generate_text(prompt, self._answer_tokens)).strip()
        continuations = [self._encoder.answer(example, text) for text in example.candidates]
        found = await self._model.log_likelihoods(prompt, continuations)
        return example.candidates[found.index(max(found))]


async def evaluate(
    examples: Sequence[Example],
    score: Score,
    respond: Respond,
    *,
    at_once: int = 16,
    on_answer: Callable[[], None] = lambda: None,
) -> Scores:
    """Scores of the answers to `examples`, which are asked `at_once` at a time."""
    waiting = iter(list(enumerate(examples)))
    said: list[str] = [""] * len(examples)

    async def ask() -> None:
        for number, example in waiting:
            said[number] = await respond(example)
            on_answer()

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(ask())
    return score([Answered(*one) for one in zip(examples, said, strict=True)])
