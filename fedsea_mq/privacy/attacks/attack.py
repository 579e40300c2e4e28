"""What an attack is: what it knows beforehand, what it sees, and what it recovers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import ClassVar, Protocol

import torch

from fedsea_mq.privacy.attacks.public_model import PublicModel
from fedsea_mq.privacy.attacks.token_table import TokenTable


class Knowledge(StrEnum):
    """What an attacker has beside what the trunk sees, each level with the ones before it."""

    SHADOW = "shadow text"
    WEIGHTS = "base weights"
    SIGMA = "base weights and sigma"


@dataclass(frozen=True, slots=True)
class Seen:
    """One session as the trunk holds it.

    `received` and `outputs` are `[positions, hidden]` in fp32: what came off the wire, with its
    noise, and what the trunk's blocks made of it. The first `prompt` positions came before the
    first answer was asked for.
    """

    received: torch.Tensor
    outputs: torch.Tensor
    prompt: int


@dataclass(frozen=True)
class Known:
    """What the attacker has. `sigma` is the standard deviation of the noise on each element.

    `shadow` are token sequences like those of the victims, of which none is a victim's.
    """

    model: PublicModel
    sigma: float
    shadow: Sequence[Sequence[int]]

    @cached_property
    def table(self) -> TokenTable:
        """Each token of the vocabulary through the head, after what most of the shadow begins with.

        For all attacks that are made with this knowledge.
        """
        firsts = [tokens[0] for tokens in self.shadow]
        return TokenTable(self.model, max(set(firsts), key=firsts.count))


class Attack(Protocol):
    """One way to read. `fit` comes first, once; `recover` gives a guess for every position.

    A guess is a token id of the position that was received. `recover` may run in several threads at
    a time.
    """

    name: ClassVar[str]
    knowledge: ClassVar[Knowledge]

    def fit(self, known: Known) -> None:
        """Prepare with what is known."""
        ...

    def recover(self, seen: Seen) -> list[int]:
        """Token ids, one a position of `seen.received`."""
        ...
