"""Whom a message comes from, as far as a key says so, and what that key may be used for. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fedsea_mq.errors import NotTrusted


class Party(StrEnum):
    """What a key is trusted to be. One key may be several."""

    CLIENT = "client"
    TRAINER = "trainer"
    TRUNK = "trunk"
    AGGREGATOR = "aggregator"


@dataclass(frozen=True, slots=True)
class Identity:
    """A sender: the id of its key, and what that is trusted to be at this moment.

    The id is empty where no keys are in use. A key that was taken off the list is nothing any more.
    `names` are those that the operator gave it.
    """

    id: bytes
    parties: frozenset[Party]
    names: frozenset[str] = frozenset()

    def must_be(self, *parties: Party) -> None:
        """Raise `NotTrusted` unless the key is trusted to be one of these."""
        if self.parties.isdisjoint(parties):
            wanted = " or ".join(party.value for party in parties)
            raise NotTrusted(f"the key is not trusted as {wanted}")

    def may_be_called(self, name: str) -> None:
        """Raise `NotTrusted` unless the name, or all of it before a dot, is the operator's for it.

        Where no keys are in use, anybody may be called anything.
        """
        if self.id and self.names.isdisjoint((name, name.rpartition(".")[0])):
            called = ", ".join(sorted(self.names)) or "nothing"
            raise NotTrusted(f"the key is called {called}, and not {name}")


# Where nothing is known of who connects, everybody may be anything.
ANYBODY: Final = Identity(b"", frozenset(Party))
