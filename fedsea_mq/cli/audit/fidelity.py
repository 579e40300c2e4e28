"""What noise leaves of the model's own predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from fedsea_mq.cli.audit.live import Captured
from fedsea_mq.privacy.attacks.public_model import PublicModel


@torch.inference_mode()
def fidelity(base: PublicModel, own: PublicModel, run: Sequence[Captured]) -> dict[str, Any]:
    """Perplexity of the prompts, with noise and without, and the share of equal predictions.

    `own` is the model that the client runs, adapters and all: its tail reads what the trunk made of
    the noised states. It is compared with `base`, without noise or adapters, at each position of
    the prompts but the last.
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
    base: PublicModel, own: PublicModel, run: Sequence[Captured]
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Losses in nats with noise and without, and whether predictions are equal: `[positions]`."""
    for one in run:
        prompt = one.tokens[: one.seen.prompt]
        following = torch.tensor(prompt[1:])
        noised = own.answers(one.seen.outputs[: len(prompt)])[:-1].cpu()
        clean = base.logits(prompt)[:-1].cpu()
        yield (
            cross_entropy(noised, following, reduction="none"),
            cross_entropy(clean, following, reduction="none"),
            noised.argmax(dim=-1) == clean.argmax(dim=-1),
        )
