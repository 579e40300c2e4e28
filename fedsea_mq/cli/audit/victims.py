"""Texts to attack: prompts of a task, each with a marked secret in it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from fedsea_mq.cli.score import Asked
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.tasks.encoding import Encoder
from fedsea_mq.tasks.task import Example

_SYLLABLES: Final = "bar cel dun fis gor hal jen kov lam mir nas pol rud sef tov vik"
_DIGITS: Final = 6


@dataclass(frozen=True, slots=True)
class Victim:
    """A prompt's token ids, and the words in it that nobody could guess."""

    tokens: tuple[int, ...]
    secrets: tuple[str, ...]


def marked(asked: Asked, checkpoint: Checkpoint, seed: int) -> Iterator[Victim]:
    """A prompt of each unit of the examples, opened with a name and a number drawn for it.

    Raises `InvalidPrompt` or `ContextOverflow` as `Encoder.prompt` does.
    """
    encoder = Encoder.of(asked.task, checkpoint)
    rng = random.Random(f"audit {seed}")  # noqa: S311 - invented names
    # The turns of one conversation hold the same text.
    for example in {one.unit: one for one in reversed(asked.examples)}.values():
        secrets = (_name(rng), drawn_number(rng))
        yield Victim(tuple(encoder.prompt(_opened(example, secrets).prompt)), secrets)


def drawn_number(rng: random.Random) -> str:
    """Six digits that nobody could guess."""
    return "".join(rng.choices("0123456789", k=_DIGITS))


def _opened(example: Example, secrets: tuple[str, str]) -> Example:
    name, number = secrets
    record = f"Record of {name}, number {number}. {example.prompt.before}"
    return replace(example, prompt=replace(example.prompt, before=record))


def _name(rng: random.Random) -> str:
    return " ".join("".join(rng.sample(_SYLLABLES.split(), 2)).capitalize() for _ in range(2))
