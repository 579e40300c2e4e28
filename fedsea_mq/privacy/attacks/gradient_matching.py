"""Gradient matching: soft labels whose gradient through the public tail is the one that was seen.

The baseline to `labels`, in the manner of DLG (Zhu et al., NeurIPS 2019, arXiv 1906.08935) and TAG
(Deng et al., arXiv 2103.06819): labels are found by gradient descent on the distance of gradients,
L2 and some L1. What DLG has to guess as well, the inputs, the trunk knows: it sent them. Each row
has a weight beside its label, which says whether it carries a loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Final

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedsea_mq.model.packed_attention import PackedLayout
from fedsea_mq.privacy.attacks.labels import GradientSeen
from fedsea_mq.privacy.attacks.public_model import PublicModel

_STEPS: Final = 100
_RATE: Final = 0.3
_L1: Final = 0.1
# A row that weighs less than the heaviest by so much carries no loss.
_CARRIES: Final = 10
# Which attention torch takes is the whole process's choice: others that attack do so in turn.
_CHOOSING: Final = Lock()


def match_labels(model: PublicModel, step: Sequence[GradientSeen]) -> list[dict[int, int]]:
    """For each sequence of an optimiser step the answer's tokens, by the position they are at.

    The number of answer tokens is not asked for: rows weigh as much as fits.
    """
    return [_match(model, one) for one in step]


def _match(model: PublicModel, one: GradientSeen) -> dict[int, int]:
    # Matching a gradient differentiates it: torch's fast attention can do that once only.
    with _CHOOSING, sdpa_kernel(SDPBackend.MATH):
        inputs = one.outputs.to(model.device, model.tail.run.dtype).requires_grad_()
        layout = PackedLayout((one.outputs.shape[0],))
        states = model.whole(model.tail.run)(inputs, layout)
        logits = model.tail.lm_head(model.tail.norm(states)).float()
        gradient = one.gradient.to(inputs.device)
        labels, weights = _optimised(logits, inputs, gradient / gradient.square().mean().sqrt())
    carries = weights > weights.max() / _CARRIES
    rows = range(len(labels) - 1)
    return {row + 1: int(labels[row]) for row in rows if bool(carries[row])}


def _optimised(
    logits: torch.Tensor, inputs: torch.Tensor, wanted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The label of each row `[rows]`, and what its loss weighs `[rows]`."""
    p = logits.detach().softmax(dim=-1)
    soft = logits.detach().log_softmax(dim=-1).clone().requires_grad_()
    weights = torch.zeros(len(p), 1, device=p.device).requires_grad_()
    scale = torch.zeros((), device=p.device).requires_grad_()
    optimiser = torch.optim.Adam([soft, weights, scale], lr=_RATE)
    for _ in range(_STEPS):
        cotangent = scale.exp() * weights.sigmoid() * (p - soft.softmax(dim=-1))
        (made,) = torch.autograd.grad(logits, inputs, cotangent, create_graph=True)
        apart = made - wanted
        loss = apart.square().mean() + _L1 * apart.abs().mean()
        optimiser.zero_grad()
        torch.autograd.backward(loss, inputs=[soft, weights, scale])
        optimiser.step()
    return soft.argmax(dim=-1), weights.detach().sigmoid()[:, 0]
