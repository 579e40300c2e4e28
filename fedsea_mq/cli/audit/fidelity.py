"""What noise leaves of the model's own predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from fedsea_mq.privacy.attacks.attack import Seen
from fedsea_mq.privacy.attacks.public_model import PublicModel
from fedsea_mq.tasks.encoding import Encoded


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt with the right answer, sent as one text, and what the trunk made of it."""

    example: Encoded
    seen: Seen


@torch.inference_mode()
def fidelity(base: PublicModel, own: PublicModel, run: Sequence[Answered]) -> dict[str, Any]:
    """Perplexity of the right answers, with noise and without, and the share of equal predictions.

    `own` is the model that the client runs, adapters and all: its tail reads what the trunk made of
    the noised states. It is compared with `base`, without noise or adapters, at each token of the
    answers.
    """
    noised, clean, same = (
        torch.cat(rows) for rows in zip(*_by_position(base, own, run), strict=True)
    )
    return {
        "perplexity": round(float(noised.mean().exp()), 3),
        "perplexity_noise_free": round(float(clean.mean().exp()), 3),
        "agreement": round(float(same.float().mean()), 4),
    }


def _by_position(
    base: PublicModel, own: PublicModel, run: Sequence[Answered]
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Losses in nats with noise and without, and whether predictions are equal: `[answer]` each."""
    for one in run:
        before = slice(len(one.example.prompt) - 1, -1)
        answer = torch.tensor(one.example.answer)
        noised = own.answers(one.seen.outputs)[before].cpu()
        clean = base.logits(one.example.ids)[before].cpu()
        yield (
            cross_entropy(noised, answer, reduction="none"),
            cross_entropy(clean, answer, reduction="none"),
            noised.argmax(dim=-1) == clean.argmax(dim=-1),
        )
