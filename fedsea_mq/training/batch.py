"""Packed training batches: whole sequences one after another, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from fedsea_mq.errors import BatchMismatch
from fedsea_mq.tasks.encoding import IGNORED, Encoded


@dataclass(frozen=True, slots=True)
class Batch:
    """The lengths of the sequences, and where a trunk holds several adapters, whose each one is.

    There, a sequence with a seed has dropout, whose masks follow from that seed.

    Raises `BatchMismatch` for an empty batch or sequence, or another number of adapters or seeds.
    """

    lengths: tuple[int, ...]
    adapters: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise BatchMismatch("a batch has at least one sequence, a sequence one position")
        if self.adapters and len(self.adapters) != len(self.lengths):
            raise BatchMismatch(f"{len(self.lengths)} sequences of {len(self.adapters)} adapters")
        if self.seeds and len(self.seeds) != len(self.lengths):
            raise BatchMismatch(f"{len(self.lengths)} sequences with {len(self.seeds)} seeds")

    @property
    def total(self) -> int:
        """Positions of all sequences: the rows of the packed tensors."""
        return sum(self.lengths)

    def positions(self, device: torch.device) -> torch.Tensor:
        """`[total]`: the position of each row in its sequence."""
        return torch.cat([torch.arange(length, device=device) for length in self.lengths])

    def check_rows(self, what: str, tensor: torch.Tensor, *rest: int) -> None:
        """Refuse a tensor that is not `[total, *rest]`.

        Raises:
            BatchMismatch: with both shapes.
        """
        expected = (self.total, *rest)
        if tuple(tensor.shape) != expected:
            raise BatchMismatch(f"{what}: {list(expected)} expected, {list(tensor.shape)} came")


@dataclass(frozen=True, slots=True)
class Packed:
    """Examples in a row: token ids and labels `[total]`, as head and tail take them."""

    ids: torch.Tensor
    labels: torch.Tensor
    batch: Batch

    @classmethod
    def of(cls, examples: Sequence[Encoded]) -> Packed:
        """Pack prompts with their answers. Raises `BatchMismatch` if there are none."""
        batch = Batch(tuple(len(one.ids) for one in examples))
        ids = torch.tensor([token for one in examples for token in one.ids])
        labels = torch.tensor([label for one in examples for label in one.labels])
        return cls(ids, labels, batch)

    @property
    def answer_tokens(self) -> int:
        """The tokens that the loss is about."""
        return len(answer_rows(self.labels, self.batch))


def answer_rows(labels: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The rows whose logits predict an answer token: each the row before it, in its sequence.

    `labels` are `[total]`, `IGNORED` where the loss is not about the token. Nothing predicts a
    sequence's first token. Gives row numbers `[answers]`; the targets are `labels[rows + 1]`.
    """
    batch.check_rows("labels", labels)
    asked = labels != IGNORED
    asked[[0, *list(accumulate(batch.lengths))[:-1]]] = False
    return asked.nonzero()[:, 0] - 1
