"""The paper's three kinds of task over the invented world, as chat examples.

Understanding has MultiRC's form (passage, question, candidate; yes or no), summarisation XSum's
(one sentence), conversation CoQA's (turns whose pronouns refer back to the last person named).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from fedsea_mq.tasks.questions import Question, every, identifying, wrong_answers
from fedsea_mq.tasks.task import Prompt, talk_before
from fedsea_mq.tasks.world import Person, Story, World

SUMMARISE: Final = "Summarise it in one sentence."


class Kind(StrEnum):
    """The embedded tasks; repeating and mixed talk are for training, and are not scored."""

    REPEAT = "repeat"
    MIXED = "mixed"
    UNDERSTANDING = "understanding"
    SUMMARY = "summary"
    CONVERSATION = "conversation"


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user says and what a right answer is."""

    said: str
    answer: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation of one task; understanding and summaries have a single turn."""

    kind: Kind
    turns: tuple[Turn, ...]

    def prompt(self, turn: int) -> Prompt:
        """The chat up to the question of `turn`, with the right answers before it."""
        asked = [one.said for one in self.turns]
        answers = [one.answer for one in self.turns]
        return Prompt(before=asked[0], chat=True, then=talk_before(turn, asked, answers))


def understanding(rng: random.Random, story: Story, questions: int = 1) -> Dialogue:
    """Is this the answer? Half of the candidates are right; wrong ones are of the same topic.

    The right answer says what the passage holds, and then whether the candidate is that: a model
    this small compares what it has said far more surely than what it would say.
    """
    turns = [_judged(rng, question) for question in rng.sample(every(story), questions)]
    return Dialogue(Kind.UNDERSTANDING, _opened_with(f"{story.text}\n", turns))


def _judged(rng: random.Random, question: Question) -> Turn:
    true = rng.random() < 0.5
    candidate = question.answer if true else rng.choice(wrong_answers(question))
    asked = f"Question: {question.named} Is it {candidate}?"
    return Turn(asked, f"{question.answer}: {'yes' if true else 'no'}")


def _opened_with(opening: str, turns: list[Turn]) -> tuple[Turn, ...]:
    first, *others = turns
    return (replace(first, said=f"{opening}{first.said}"), *others)


def summary(story: Story) -> Dialogue:
    """One sentence: who did the deed, and what it was."""
    answer = f"{story.person.name}, {story.work} in {story.home}, {story.deed.told}."
    said = f"The passage is: {story.text}\n{SUMMARISE}"
    return Dialogue(Kind.SUMMARY, (Turn(said, answer),))


def repeat(story: Story) -> Dialogue:
    """The passage, word for word."""
    return Dialogue(Kind.REPEAT, (Turn(f"{story.text}\nSay it again.", story.text),))


def conversation(rng: random.Random, story: Story, turns: int) -> Dialogue:
    """Questions that follow each other, by pronoun wherever the person was the last one named.

    Half of them begin by asking who it is.
    """
    return Dialogue(Kind.CONVERSATION, _opened_with(_announced(story), _talk(rng, story, turns, 0)))


def mixed(rng: random.Random, story: Story, turns: int) -> Dialogue:
    """A conversation as people have it: the passage announced or not, some answers to be judged."""
    talk = _talk(rng, story, turns, judged=0.4)
    opening = _announced(story) if rng.random() < 0.3 else f"{story.text}\n"
    return Dialogue(Kind.MIXED, _opened_with(opening, talk))


def _announced(story: Story) -> str:
    return f"The story is: {story.text}\nMy question is: "


def _talk(rng: random.Random, story: Story, turns: int, judged: float) -> list[Turn]:
    first = rng.choice(identifying(story) if rng.random() < 0.5 else every(story))
    asked = [first, *rng.sample([q for q in every(story) if q != first], turns - 1)]
    last_named: Person | None = None
    said: list[Turn] = []
    for question in asked:
        if rng.random() < judged:
            said.append(_judged(rng, question))
        else:
            text = question.pronoun if last_named is story.person else question.named
            said.append(Turn(text, question.answer))
        last_named = question.names_after
    return said


def dialogues(kind: Kind, seed: int, count: int, *, held_out: bool = True) -> Iterator[Dialogue]:
    """`count` examples of a task from the world of that seed, in evaluation's form."""
    world, rng = World(seed, held_out=held_out), random.Random(f"{kind} {seed}")
    for _ in range(count):
        story = world.story()
        match kind:
            case Kind.REPEAT:
                yield repeat(story)
            case Kind.UNDERSTANDING:
                yield understanding(rng, story)
            case Kind.SUMMARY:
                yield summary(story)
            case Kind.CONVERSATION:
                yield conversation(rng, story, turns=4)
            case Kind.MIXED:
                yield mixed(rng, story, turns=4)
