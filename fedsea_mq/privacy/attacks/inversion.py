"""Inversion by optimisation: inputs that the public head turns into what was received.

After Qu et al., "Prompt Inversion Attack" (arXiv 2503.09022): each position is a mixture over the
embedding table, moved by gradient descent until the head's output is near; the token of most weight
is then taken. All positions are moved at once, and the mixture is sharpened as it goes.
"""

from __future__ import annotations

from typing import ClassVar, Final

import torch

from fedsea_mq.model.packed_attention import PackedLayout
from fedsea_mq.privacy.attacks.attack import Knowledge, Known, Seen

_STEPS: Final = 100
_RATE: Final = 0.3
# How soft the mixture is at first, and in the end.
_WARM: Final = 1.0
_COLD: Final = 0.3


class SoftInversion:
    """Gradient descent on mixtures of embeddings through the public head."""

    name: ClassVar[str] = "optimised inputs"
    knowledge: ClassVar[Knowledge] = Knowledge.WEIGHTS

    def fit(self, known: Known) -> None:
        """Nothing is learnt; the table is where the search begins."""
        self._head = known.model.head
        self._presented = known.model.presented
        self._told = known.model.whole(known.model.head.run)
        self._table = known.table

    def recover(self, seen: Seen) -> list[int]:
        """See `Attack.recover`."""
        received = seen.received.to(self._table.later.device)
        scale = received.square().mean()
        near = torch.stack(
            [self._table.distances(row, position) for position, row in enumerate(received)]
        )
        mixture = (-near / near.mean()).clone().requires_grad_()
        optimiser = torch.optim.Adam([mixture], lr=_RATE)
        for step in range(_STEPS):
            softness = _WARM + (_COLD - _WARM) * step / _STEPS
            loss = (self._states(mixture / softness) - received).square().mean() / scale
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
        return mixture.argmax(dim=-1).tolist()

    def _states(self, mixture: torch.Tensor) -> torch.Tensor:
        embedding = self._head.embedding.weight
        inputs = (mixture.softmax(dim=-1).to(embedding.dtype) @ embedding).to(self._head.run.dtype)
        return self._presented(self._told(inputs, PackedLayout((mixture.shape[0],))))
