"""What can be asked about a story: each question in a named and a pronoun form, with its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fedsea_mq.tasks.world import (
    ANIMALS,
    COLOURS,
    COUNTS,
    FOODS,
    ITEMS,
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
    """One question. `pronoun` is the form to use when its person was the last one named."""

    topic: Topic
    person: Person
    named: str
    pronoun: str
    answer: str
    names_after: Person
    """The person a pronoun refers to once this question has been answered."""


def about(person: Person) -> list[Question]:
    """Questions about what a person is and has."""
    return [
        _of(person, Topic.TRADE, "What is {whose} trade?", person.work),
        _of(person, Topic.HOME, "Where does {who} live?", person.home),
        _of(person, Topic.PET, "What animal does {who} keep?", person.pet),
        _of(person, Topic.COLOUR, f"What colour is {{whose}} {person.animal}?", person.colour),
        _of(person, Topic.FOOD, "What does {who} like to eat?", person.food),
    ]


def identifying(story: Story) -> list[Question]:
    """Questions whose answer is a name; no pronoun is involved."""
    asked = [
        (person, text)
        for person in story.people
        for text in (
            f"Who is the {person.trade}?",
            f"Who lives in {person.home}?",
            f"Who keeps the {person.animal}?",
            f"Who likes {person.food}?",
        )
    ]
    deed = story.deed
    asked.append((deed.actor, f"Who {deed.verb.past} the {deed.item}?"))
    return [Question(Topic.WHO, p, text, text, p.name, p) for p, text in asked]


def about_deed(story: Story) -> list[Question]:
    """Questions about the deed, asked of its actor."""
    deed, verb = story.deed, story.deed.verb
    other = f"Who did {{who}} {verb.base} the {deed.item} {verb.towards}?"
    return [
        _of(deed.actor, Topic.THINGS, f"What did {{who}} {verb.base}?", deed.things),
        _of(deed.actor, Topic.COUNT, f"How many {deed.item} did {{who}} {verb.base}?", deed.count),
        _of(
            deed.actor,
            Topic.SEASON,
            f"When did {{who}} {verb.base} the {deed.item}?",
            f"in {deed.season}",
        ),
        _of(deed.actor, Topic.WHO, other, deed.other.name, names_after=deed.other),
    ]


def every(story: Story) -> list[Question]:
    """Every question that the story answers."""
    portraits = [question for person in story.people for question in about(person)]
    return [*portraits, *identifying(story), *about_deed(story)]


def _of(
    person: Person, topic: Topic, text: str, answer: str, names_after: Person | None = None
) -> Question:
    return Question(
        topic,
        person,
        text.format(who=person.name, whose=f"{person.name}'s"),
        text.format(who=person.subject, whose=person.possessive),
        answer,
        names_after or person,
    )


_IN_STORY: Final[dict[Topic, Callable[[Story], list[str]]]] = {
    Topic.TRADE: lambda story: [p.work for p in story.people],
    Topic.HOME: lambda story: [p.home for p in story.named],
    Topic.PET: lambda story: [p.pet for p in story.people],
    Topic.COLOUR: lambda story: [p.colour for p in story.people],
    Topic.FOOD: lambda story: [p.food for p in story.people],
    Topic.WHO: lambda story: [p.name for p in story.named],
    Topic.THINGS: lambda story: [story.deed.things],
    Topic.COUNT: lambda story: [story.deed.count],
    Topic.SEASON: lambda story: [f"in {story.deed.season}"],
}
_ANYWHERE: Final[dict[Topic, list[str]]] = {
    Topic.TRADE: [with_article(trade) for trade in TRADES],
    Topic.HOME: [],
    Topic.PET: [with_article(f"{colour} {animal}") for colour in COLOURS for animal in ANIMALS],
    Topic.COLOUR: COLOURS,
    Topic.FOOD: FOODS,
    Topic.WHO: [],
    Topic.THINGS: [f"{count} {item}" for count in COUNTS for item in ITEMS],
    Topic.COUNT: COUNTS,
    Topic.SEASON: [f"in {season}" for season in SEASONS],
}


def wrong_answers(story: Story, question: Question) -> tuple[list[str], list[str]]:
    """Answers of the same topic that are false: those the story holds, and all others."""
    in_story = [a for a in _IN_STORY[question.topic](story) if a != question.answer]
    anywhere = [a for a in _ANYWHERE[question.topic] if a != question.answer]
    return in_story, anywhere
