"""A small invented world: who lives in it, what they own and do.

It has a hundred or so inhabitants and a few dozen places; every story draws its facts anew, so that
nothing can be known of a person but by reading the passage. A held-out world is one whose seed
training never uses.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

_FIRST: Final = (
    "Ma Be To Ka Li Ro Su Ne Da Fi Jo Ha Lu Pe Sa Ve Wi Ti Or El Ga Mo Ny Ba Ce Du Fa Go Il Ke"
).split()
_LAST_SHE: Final = "rina lith della vessa mira shan nelle yara bette wyn dora lisse".split()
_LAST_HE: Final = "rick ban dor mund toll gar vin bert karn lo reth den".split()
_PLACE_FIRST: Final = (
    "Ash Birch Crow Dun Elder Fern Grey Hazel Iron Kings Long Marsh North Oak Pine Raven Stone "
    "Thorn West Winter"
).split()
_PLACE_LAST: Final = "ford mere holt wick dale haven bridge moor stead combe".split()


def _combined(firsts: list[str], lasts: list[str], step: int, count: int) -> list[str]:
    """`count` names that spread evenly over the syllables."""
    pairs = [(first, last) for first in firsts for last in lasts]
    return ["".join(pairs[i * step % len(pairs)]) for i in range(count)]


_SHE: Final = _combined(_FIRST, _LAST_SHE, 7, 60)
_HE: Final = _combined(_FIRST, _LAST_HE, 7, 60)
_PLACES: Final = _combined(_PLACE_FIRST, _PLACE_LAST, 3, 60)
TRADES: Final = (
    "baker miller weaver potter smith tailor cooper fisher farmer hunter gardener painter mason "
    "carpenter teacher doctor singer dancer brewer tanner cobbler glazier thatcher shepherd sailor "
    "clerk jeweller chandler saddler scribe"
).split()
ANIMALS: Final = (
    "fox cat dog goat horse raven owl hen goose rabbit hare badger mule pony pig duck swan falcon "
    "tortoise lamb ferret otter hedgehog donkey"
).split()
COLOURS: Final = "red black white grey brown golden silver blue green spotted striped pale".split()
FOODS: Final = (
    "plum cake|barley soup|honey bread|pea stew|smoked trout|apple pie|goat cheese|nettle tea|"
    "roast chestnuts|oat porridge|pickled beets|onion tart|salt herring|pear jam|rye bread|"
    "mushroom broth|baked eggs|lamb stew|cherry cake|carrot soup"
).split("|")
ITEMS: Final = (
    "lanterns baskets candles ropes blankets kettles hammers ladders mirrors barrels carpets drums "
    "books maps clocks cloaks boots spoons jars chairs bells combs pens bowls"
).split()
COUNTS: Final = "two three four five six seven eight nine ten eleven twelve".split()
SEASONS: Final = "spring summer autumn winter".split()


@dataclass(frozen=True, slots=True)
class Verb:
    """Something one person does with things and another person."""

    base: str
    past: str
    towards: str


VERBS: Final = (
    Verb("buy", "bought", "from"),
    Verb("borrow", "borrowed", "from"),
    Verb("sell", "sold", "to"),
    Verb("give", "gave", "to"),
    Verb("steal", "stole", "from"),
    Verb("send", "sent", "to"),
)


@dataclass(frozen=True, slots=True)
class Person:
    """One inhabitant."""

    name: str
    is_she: bool
    trade: str
    home: str
    colour: str
    animal: str
    food: str

    @property
    def subject(self) -> str:
        """`she` or `he`."""
        return "she" if self.is_she else "he"

    @property
    def possessive(self) -> str:
        """`her` or `his`."""
        return "her" if self.is_she else "his"

    @property
    def pet(self) -> str:
        """The pet as an answer."""
        return with_article(f"{self.colour} {self.animal}")

    @property
    def work(self) -> str:
        """The trade as an answer."""
        return with_article(self.trade)


@dataclass(frozen=True, slots=True)
class Deed:
    """The event of a story."""

    actor: Person
    verb: Verb
    count: str
    item: str
    other: Person
    season: str

    @property
    def things(self) -> str:
        """What changed hands."""
        return f"{self.count} {self.item}"


@dataclass(frozen=True, slots=True)
class Story:
    """The people that a passage portrays, one deed, and the passage itself."""

    people: tuple[Person, ...]
    deed: Deed
    text: str

    @property
    def named(self) -> tuple[Person, ...]:
        """Everyone that the passage names: with a single portrait, the stranger too."""
        other = self.deed.other
        return self.people if other in self.people else (*self.people, other)


class World:
    """An endless supply of stories, the same for the same seed."""

    def __init__(self, seed: int, *, held_out: bool = False) -> None:
        self._rng = random.Random(f"world {seed} {held_out}")

    def story(self, people: Sequence[int] = (2, 3, 3)) -> Story:
        """The next story, portraying one of these numbers of people."""
        count = self._rng.choice(people)
        # A deed needs two; with one portrait the other is a stranger, known by name only.
        drawn = self._people(max(2, count))
        portrayed = drawn[:count]
        actor = self._rng.choice(portrayed)
        other = self._rng.choice([person for person in drawn if person is not actor])
        pick = self._rng.choice
        deed = Deed(actor, pick(VERBS), pick(COUNTS), pick(ITEMS), other, pick(SEASONS))
        return Story(portrayed, deed, _tell(self._rng, portrayed, deed))

    def _people(self, count: int) -> tuple[Person, ...]:
        """People who share nothing, so that every question about them has one answer."""
        draw = self._rng.sample
        names = self._distinct(count, self._name)
        homes = self._distinct(count, self._place)
        return tuple(
            Person(name, name in _SHE, trade, home, colour, animal, food)
            for name, home, trade, colour, animal, food in zip(
                names,
                homes,
                draw(TRADES, count),
                draw(COLOURS, count),
                draw(ANIMALS, count),
                draw(FOODS, count),
                strict=True,
            )
        )

    def _distinct(self, count: int, draw: Callable[[], str]) -> list[str]:
        found: list[str] = []
        while len(found) < count:
            name = draw()
            if name not in found:
                found.append(name)
        return found

    def _name(self) -> str:
        return self._rng.choice(self._rng.choice((_SHE, _HE)))

    def _place(self) -> str:
        return self._rng.choice(_PLACES)


def with_article(noun: str) -> str:
    """`a fox`, `an owl`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _tell(rng: random.Random, people: tuple[Person, ...], deed: Deed) -> str:
    """The passage: each person in turn, and the deed after its actor or at the end."""
    deed_after = rng.choice((deed.actor, people[-1]))
    sentences: list[str] = []
    for person in people:
        sentences += _portrait(rng, person)
        if person is deed_after:
            sentences.append(_deed_sentence(rng, deed))
    return " ".join(sentences)


def _portrait(rng: random.Random, person: Person) -> list[str]:
    opening = rng.choice(
        (
            f"{person.name} is {person.work} in {person.home}.",
            f"{person.name} works as {person.work} in {person.home}.",
            f"{person.name} of {person.home} is {person.work}.",
            f"{person.name}, who lives in {person.home}, is {person.work}.",
        )
    )
    pet = f"{_mention(rng, person)} {rng.choice(('keeps', 'has', 'owns'))} {person.pet}."
    likes = rng.choice((f"likes {person.food}", f"loves {person.food}", f"eats {person.food}"))
    food = f"{_mention(rng, person)} {likes}."
    rest = [pet, food]
    rng.shuffle(rest)
    return [opening, *rest]


def _mention(rng: random.Random, person: Person) -> str:
    """By name three times in four, by pronoun otherwise."""
    return person.name if rng.random() < 0.75 else person.subject.capitalize()


def _deed_sentence(rng: random.Random, deed: Deed) -> str:
    done = f"{deed.verb.past} {deed.things} {deed.verb.towards} {deed.other.name}"
    return rng.choice(
        (
            f"Last {deed.season} {deed.actor.name} {done}.",
            f"In {deed.season} {deed.actor.name} {done}.",
            f"{deed.actor.name} {done} in {deed.season}.",
        )
    )
