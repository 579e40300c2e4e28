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
    """

    id: bytes
    parties: frozenset[Party]

    def must_be(self, *parties: Party) -> None:
        """Raise `NotTrusted` unless the key is trusted to be one of these."""
        if self.parties.isdisjoint(parties):
            wanted = " or ".join(party.value for party in parties)
            raise NotTrusted(f"the key is not trusted as {wanted}")


# Where nothing is known of who connects, everybody may be anything.
ANYBODY: Final = Identity(b"", frozenset(Party))
