"""What each token by itself makes of the head: where attacks begin to look."""

from __future__ import annotations

import torch

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
