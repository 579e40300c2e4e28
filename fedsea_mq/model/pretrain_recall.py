"""What the embedded model learns before it reads: to look up what went with what.

Passages reward guessing the right *kind* of word long before the right word, and from passages
alone comparing words was not learned in thousands of steps. From a few pairs of random tokens,
where there is nothing to guess, looking up is learned in some two hundred; more pairs then take
tens, and passages a few hundred.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fedsea_mq.model.pretrain_data import IGNORED, Batch


@dataclass(frozen=True, slots=True)
class Recall:
    """A lesson of `steps` steps: `pairs` pairs, then the same in another order."""

    pairs: int
    steps: int

    def __str__(self) -> str:
        return f"recall of {self.pairs} pairs"


def recall_batches(
    lesson: Recall, tokens: range, *, seed: int, batch_tokens: int
) -> Iterator[Batch]:
    """The lesson's batches of rows `[4 * pairs]`, of ids in `tokens`; the same for the same seed.

    The answers are the second tokens of the pairs as they come again.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, batch_tokens // (4 * lesson.pairs))
    for _ in range(lesson.steps):
        yield _batch(tokens, rows, lesson.pairs, generator)


def _batch(tokens: range, rows: int, pairs: int, generator: torch.Generator) -> Batch:
    shape = (rows, pairs, 2)
    told = torch.randint(tokens.start, tokens.stop, shape, generator=generator)
    order = torch.rand((rows, pairs), generator=generator).argsort(dim=1)
    asked = told.gather(1, order[:, :, None].expand(shape))
    ids = torch.cat((told, asked), dim=1).flatten(1)
    answers = torch.zeros_like(ids, dtype=torch.bool)
    answers[:, 2 * pairs + 1 :: 2] = True
    return Batch(ids, torch.where(answers, ids, IGNORED), answers)
