"""What can be asked about a story: each question in a named and a pronoun form, with its answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fedsea_mq.tasks.world import (
    ANIMALS,
    COLOURS,
    COUNTS,
    FOODS,
    ITEMS,
    PEOPLE,
    PLACES,
    SEASONS,
    TRADES,
    Person,
    Story,
    with_article,
)


class Topic(StrEnum):
    """What a question asks for; answers of one topic can be mistaken for each other."""

    TRADE = "trade"
    HOME = "home"
    PET = "pet"
    COLOUR = "colour"
    FOOD = "food"
    WHO = "who"
    THINGS = "things"
    COUNT = "count"
    SEASON = "season"


@dataclass(frozen=True, slots=True)
class Question:
    """One question. `pronoun` is the form to use when the story's person was the last one named.

    `names_after` is the person that was named last once the question has been answered.
    """

    topic: Topic
    named: str
    pronoun: str
    answer: str
    names_after: Person


def every(story: Story) -> list[Question]:
    """Every question that the story answers."""
    deed, verb = story.deed, story.deed.verb
    with_whom = f"Who did {{who}} {verb.base} the {deed.item} {verb.towards}?"
    when = f"When did {{who}} {verb.base} the {deed.item}?"
    count = f"How many {deed.item} did {{who}} {verb.base}?"
    return [
        _of(story, Topic.TRADE, "What is {whose} trade?", story.work),
        _of(story, Topic.HOME, "Where does {who} live?", story.home),
        _of(story, Topic.PET, "What animal does {who} keep?", story.pet),
        _of(story, Topic.COLOUR, f"What colour is {{whose}} {story.animal}?", story.colour),
        _of(story, Topic.FOOD, "What does {who} like to eat?", story.food),
        _of(story, Topic.THINGS, f"What did {{who}} {verb.base}?", deed.things),
        _of(story, Topic.COUNT, count, deed.count),
        _of(story, Topic.SEASON, when, f"in {deed.season}"),
        _of(story, Topic.WHO, with_whom, deed.other.name, names_after=deed.other),
        *identifying(story),
    ]


def identifying(story: Story) -> list[Question]:
    """Questions whose answer is the story's person; no pronoun is involved."""
    texts = (
        f"Who is the {story.trade}?",
        f"Who lives in {story.home}?",
        f"Who keeps the {story.animal}?",
        f"Who likes {story.food}?",
        f"Who {story.deed.verb.past} the {story.deed.item}?",
    )
    return [_of(story, Topic.WHO, text, story.person.name) for text in texts]


def _of(
    story: Story, topic: Topic, text: str, answer: str, *, names_after: Person | None = None
) -> Question:
    person = story.person
    return Question(
        topic,
        text.format(who=person.name, whose=f"{person.name}'s"),
        text.format(who=person.subject, whose=person.possessive),
        answer,
        names_after or person,
    )


_ALTERNATIVES: Final[dict[Topic, list[str]]] = {
    Topic.TRADE: [with_article(trade) for trade in TRADES],
    Topic.HOME: PLACES,
    Topic.PET: [with_article(f"{colour} {animal}") for colour in COLOURS for animal in ANIMALS],
    Topic.COLOUR: COLOURS,
    Topic.FOOD: FOODS,
    Topic.WHO: [person.name for person in PEOPLE],
    Topic.THINGS: [f"{count} {item}" for count in COUNTS for item in ITEMS],
    Topic.COUNT: COUNTS,
    Topic.SEASON: [f"in {season}" for season in SEASONS],
}


def wrong_answers(question: Question) -> list[str]:
    """Answers of the same topic that are false."""
    return [answer for answer in _ALTERNATIVES[question.topic] if answer != question.answer]
