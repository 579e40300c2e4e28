"""Which blocks of a trunk a node serves, where several nodes are stages of one chain."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from fedsea_mq.protocol.bounded import BODY, Blocks, ClientId, SessionId


@dataclass(frozen=True, slots=True, config=BODY)
class Stage:
    """Blocks `first .. stop` of a trunk of blocks `begin .. end`.

    Counted from the model's first block; `stop` and `end` are not included.
    """

    first: Blocks
    stop: Blocks
    begin: Blocks
    end: Blocks

    @model_validator(mode="after")
    def _is_inside(self) -> Self:
        if not self.begin <= self.first < self.stop <= self.end:
            raise ValueError("no run of the trunk's blocks")
        return self

    @property
    def is_last(self) -> bool:
        """Whether no block comes after it."""
        return self.stop == self.end

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the trunk."""
        return (self.first, self.stop) == (self.begin, self.end)

    @property
    def entry(self) -> int | None:
        """The block that sessions must ask for to come here; None for the trunk's first."""
        return None if self.first == self.begin else self.first

    @property
    def depth(self) -> int:
        """Stages like this one that make the trunk: so many steps of a round of it are under way.

        Blocks cost alike, so this is also how much longer the whole chain takes than this stage.
        """
        return max(1, round((self.end - self.begin) / (self.stop - self.first)))

    def __str__(self) -> str:
        return f"{self.first}-{self.stop - 1}"


@dataclass(frozen=True, slots=True, config=BODY)
class Onward:
    """That a session goes on, from block `first`, one that the asking node holds.

    `session` is the one that it holds, by which the broker sees that the node may ask; nobody else
    is told it. `client` is whose that is, for fairness: the broker sets it.
    """

    first: Blocks
    session: SessionId | None = None
    client: ClientId = b""
