"""What a task is: where its examples come from, what is asked, and how answers are scored.

A task's records become `Example`s. An example with candidates is answered by the candidate that
the model finds most likely; one without, by what the model says. Training takes its loss on the
answer alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from fedsea_mq.model.chat import Message

Scores = dict[str, float]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is given: `before`, `passage` and `after` in a row.

    The passage is the part that may be shortened, from its left, where all is too long. The whole
    is a text to continue or, with `chat`, what the user says first; `then` is what was said after
    it: an answer, the next question, and so on, to the last question.
    """

    passage: str = ""
    before: str = ""
    after: str = ""
    chat: bool = False
    system: str = ""
    then: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The text to continue; an answer follows after one space."""
        return f"{self.before}{self.passage}{self.after}".rstrip()

    def messages(self) -> list[Message]:
        """The chat, up to the question that is to be answered."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        said = (self.text, *self.then)
        roles = ("user", "assistant")
        chat = [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(said)]
        return [*system, *chat]

    def with_passage(self, passage: str) -> Prompt:
        """The same with another passage."""
        return replace(self, passage=passage)


def talk_before(turn: int, asked: Sequence[str], said: Sequence[str]) -> tuple[str, ...]:
    """`Prompt.then` for the question of `turn`: each answer before it, and what was asked next."""
    return tuple(text for past in range(turn) for text in (said[past], asked[past + 1]))


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to answer."""

    prompt: Prompt
    answer: str | None
    """The right answer, which training learns; None where the record tells only a wrong one."""
    candidates: tuple[str, ...] = ()
    """The answers to choose from; none where the answer is said freely."""
    references: tuple[str, ...] = ()
    """All right answers, where a metric counts the best of several."""
    label: str = ""
    """The class that the answer stands for, for metrics and for shards; empty without classes."""
    record: str = ""
    """Names the passage or record that it is from: what must not be on both sides of a split."""
    group: str = ""
    """Names, inside the record, what is drawn and counted together, as a question's answers are."""

    @property
    def unit(self) -> tuple[str, str]:
        """Examples with the same one belong together."""
        return self.record, self.group

    @property
    def right(self) -> tuple[str, ...]:
        """Every answer that counts as right."""
        return self.references or (() if self.answer is None else (self.answer,))


@dataclass(frozen=True, slots=True)
class Answered:
    """An example and what was said to it: a candidate, or the model's own words."""

    example: Example
    said: str


Score = Callable[[Sequence[Answered]], Scores]


class Split(StrEnum):
    """The parts of a data set."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which examples: of `count` units drawn with `seed`; without `count`, all there are."""

    split: Split = Split.VALIDATION
    count: int | None = None
    seed: int = 0


class Source(Protocol):
    """Where a task's examples come from."""

    def examples(self, wanted: Wanted) -> Iterator[Example]:
        """The examples, in an order that is always the same. Raises `TaskDataError`."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Tokens of a prompt, and of an answer that is said freely. An answer to learn is never cut."""

    source_tokens: int = 700
    answer_tokens: int = 20

    def within(self, positions: int) -> Limits:
        """The same for a model that holds no more than `positions`."""
        return replace(self, source_tokens=min(self.source_tokens, positions - self.answer_tokens))


@dataclass(frozen=True, slots=True)
class Task:
    """A task by its name. The default limits are the paper's (Tasks and prompts)."""

    name: str
    source: Source
    score: Score
    limits: Limits = Limits()
