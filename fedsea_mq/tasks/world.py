"""A small invented world: who lives in it, what they own and do.

It has a hundred or so inhabitants and a few dozen places; every story draws its facts anew, so that
nothing can be known of a person but by reading the passage. A held-out world is one whose seed
training never uses.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
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


PLACES: Final = _combined(_PLACE_FIRST, _PLACE_LAST, 3, 60)
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


class Facet(StrEnum):
    """One thing about a person."""

    TRADE = "trade"
    HOME = "home"
    PET = "pet"
    FOOD = "food"


_PREDICATES: Final = {
    Facet.TRADE: ("is", "works as"),
    Facet.HOME: ("lives in", "comes from"),
    Facet.PET: ("keeps", "has", "owns"),
    Facet.FOOD: ("likes", "loves", "eats"),
}


@dataclass(frozen=True, slots=True)
class Person:
    """An inhabitant."""

    name: str
    is_she: bool

    @property
    def subject(self) -> str:
        """`she` or `he`."""
        return "she" if self.is_she else "he"

    @property
    def possessive(self) -> str:
        """`her` or `his`."""
        return "her" if self.is_she else "his"


PEOPLE: Final = [
    *(Person(name, is_she=True) for name in _combined(_FIRST, _LAST_SHE, 7, 60)),
    *(Person(name, is_she=False) for name in _combined(_FIRST, _LAST_HE, 7, 60)),
]


@dataclass(frozen=True, slots=True)
class Deed:
    """What the person of a story did, with another one."""

    verb: Verb
    count: str
    item: str
    other: Person
    season: str

    @property
    def things(self) -> str:
        """What changed hands."""
        return f"{self.count} {self.item}"

    @property
    def told(self) -> str:
        """What was done and with whom, without the doer."""
        return f"{self.verb.past} {self.things} {self.verb.towards} {self.other.name}"


@dataclass(frozen=True, slots=True)
class Story:
    """A person, four facts about them, one deed, and the passage that tells of it all."""

    person: Person
    trade: str
    home: str
    colour: str
    animal: str
    food: str
    deed: Deed
    text: str

    @property
    def pet(self) -> str:
        """Colour and animal, with an article."""
        return with_article(f"{self.colour} {self.animal}")

    @property
    def work(self) -> str:
        """The trade, with an article."""
        return with_article(self.trade)


class World:
    """An endless supply of stories, the same for the same seed."""

    def __init__(self, seed: int, *, held_out: bool = False) -> None:
        self._rng = random.Random(f"world {seed} {held_out}")

    def story(self) -> Story:
        """The next story."""
        pick = self._rng.choice
        person, other = self._rng.sample(PEOPLE, 2)
        trade, home, food = pick(TRADES), pick(PLACES), pick(FOODS)
        colour, animal = pick(COLOURS), pick(ANIMALS)
        deed = Deed(pick(VERBS), pick(COUNTS), pick(ITEMS), other, pick(SEASONS))
        facts = {
            Facet.TRADE: with_article(trade),
            Facet.HOME: home,
            Facet.PET: with_article(f"{colour} {animal}"),
            Facet.FOOD: food,
        }
        text = _tell(self._rng, person, facts, deed)
        return Story(person, trade, home, colour, animal, food, deed, text)


def with_article(noun: str) -> str:
    """`a fox`, `an owl`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _tell(rng: random.Random, person: Person, facts: Mapping[Facet, str], deed: Deed) -> str:
    """The facts and the deed in any order; the person by name first, later often by pronoun."""
    said = [f"{rng.choice(_PREDICATES[facet])} {value}" for facet, value in facts.items()]
    done = rng.choice((f"{deed.told} in {deed.season}", f"in {deed.season} {{who}} {deed.told}"))
    said.append(done)
    rng.shuffle(said)
    sentences = []
    for number, predicate in enumerate(said):
        by_name = number == 0 or rng.random() < 0.4
        who = person.name if by_name else person.subject
        sentence = predicate.format(who=who) if "{who}" in predicate else f"{who} {predicate}"
        sentences.append(f"{sentence[0].upper()}{sentence[1:]}.")
    return " ".join(sentences)
