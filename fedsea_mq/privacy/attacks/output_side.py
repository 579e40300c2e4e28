"""The output side: a public copy of the tail on what the trunk computed."""

from __future__ import annotations

from typing import ClassVar

import torch

from fedsea_mq.privacy.attacks.attack import Knowledge, Known, Seen


class PublicTail:
    """What the public tail says comes next is taken for what came next.

    Where the client takes the likeliest token, as it does by default, that is the answer. Of the
    prompt it is only what the model would have said itself.
    """

    name: ClassVar[str] = "public tail on outputs"
    knowledge: ClassVar[Knowledge] = Knowledge.WEIGHTS

    def fit(self, known: Known) -> None:
        """Nothing is learnt."""
        self._model = known.model

    def recover(self, seen: Seen) -> list[int]:
        """See `Attack.recover`. Nothing says what came first: that is guessed as the second."""
        said = self._model.answers(seen.outputs).argmax(dim=-1)
        return torch.cat((said[:1], said[:-1])).tolist()
