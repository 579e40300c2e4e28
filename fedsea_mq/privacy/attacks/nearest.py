"""Nearest neighbour: every position by itself, against what each token alone makes of the head."""

from __future__ import annotations

from typing import ClassVar

import torch

from fedsea_mq.privacy.attacks.attack import Knowledge, Known, Seen
from fedsea_mq.privacy.attacks.public_model import PublicModel


class TokenTable:
    """What leaves the head for each token of the vocabulary, out of context: `[vocab, hidden]`.

    As the first position and as one after it: LLaMA models make something else of the first.
    """

    def __init__(self, model: PublicModel, first: int) -> None:
        ids = torch.arange(model.vocab, device=model.device)
        cache = model.head.run.new_cache(1)
        self.at_start = model.alternatives(ids, cache, 0)
        caches = model.caches(1)
        model.advance([first], [caches], 0)
        self.later = model.alternatives(ids, caches.head, 1)

    def distances(self, received: torch.Tensor, position: int) -> torch.Tensor:
        """Squared distance of one received state `[hidden]` to each token's: `[vocab]`."""
        table = self.at_start if position == 0 else self.later
        return (table - received.to(table)).square().sum(dim=-1)


def first_token(known: Known) -> int:
    """What texts begin with: what most of the shadow text does."""
    firsts = [tokens[0] for tokens in known.shadow]
    return max(set(firsts), key=firsts.count)


class NearestNeighbour:
    """The token whose state, out of context, is nearest."""

    name: ClassVar[str] = "nearest neighbour"
    knowledge: ClassVar[Knowledge] = Knowledge.WEIGHTS

    def fit(self, known: Known) -> None:
        """Run each token of the vocabulary through the head."""
        self._table = TokenTable(known.model, first_token(known))

    def recover(self, seen: Seen) -> list[int]:
        """See `Attack.recover`."""
        rows = enumerate(seen.received)
        return [int(self._table.distances(row, position).argmin()) for position, row in rows]
