"""Noise where the model tolerates it: less in directions that move the loss, more in the others.

To second order Gaussian noise of covariance S adds tr(F S) / 2 to the loss, where F is the Fisher
matrix of the head's outputs. With S proportional to the inverse of F (and a ridge, which bounds how
uneven it gets), each direction of F costs the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from fedsea_mq.errors import ConfigError
from fedsea_mq.model.packed_attention import PackedLayout
from fedsea_mq.privacy.attacks.public_model import PublicModel


def shaped_root(gradients: torch.Tensor, ridge: float) -> torch.Tensor:
    """The symmetric `root` `[hidden, hidden]`, fp32, of a covariance that spares the loss.

    `gradients` `[samples, hidden]` are of the loss by the head's outputs. With
    F = mean(g g^T) * hidden / trace:

        covariance = a (F + ridge I)^-1, with a such that its trace is hidden; root = covariance^1/2

    The least variance of a direction is at least ridge / (hidden + ridge), and for `ridge` far
    above 1 the noise is isotropic.

    Raises:
        ConfigError: `ridge` is not above 0, or the gradients are not of this shape, not finite or
            all zero.
    """
    if not ridge > 0:
        raise ConfigError(f"ridge: expected greater than 0, found {ridge}")
    if gradients.ndim != 2 or not gradients.numel():
        raise ConfigError(f"gradients: expected [samples, hidden], found {list(gradients.shape)}")
    hidden = gradients.shape[1]
    wide = gradients.double()
    fisher = wide.T @ wide
    trace = float(fisher.trace())
    if not 0 < trace < float("inf"):
        raise ConfigError("gradients: all zero, or not finite")
    values, vectors = torch.linalg.eigh(fisher * (hidden / trace))
    # Rounding makes eigenvalues of nothing a little less than nothing.
    variances = 1 / (values.clamp_min(0) + ridge)
    variances *= hidden / variances.sum()
    root: torch.Tensor = (vectors * variances.sqrt()) @ vectors.T
    return root.float()


def output_gradients(model: PublicModel, texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Gradients of the whole model's next-token cross-entropy by the head's outputs.

    `[samples, hidden]`, fp32, one a position of each sequence of token ids but its last, which
    nothing is predicted from. The loss is in nats, summed over a sequence, without noise.

    Raises:
        ConfigError: no sequence has two tokens.
    """
    found = [_of_one(model, tokens) for tokens in texts if len(tokens) > 1]
    if not found:
        raise ConfigError("gradients: expected a text of two tokens or more")
    return torch.cat(found)


def _of_one(model: PublicModel, tokens: Sequence[int]) -> torch.Tensor:
    # A copy that autograd may keep: `states` runs in inference mode.
    states = model.states(tokens).clone().requires_grad_()
    layout = PackedLayout((len(tokens),))
    with torch.enable_grad():
        outputs = model.whole(model.trunk)(states.to(model.trunk.dtype), layout)
        last = model.whole(model.tail.run)(outputs.to(model.tail.run.dtype), layout)[:-1]
        logits = model.tail.lm_head(model.tail.norm(last)).float()
        wanted = torch.tensor(list(tokens[1:]), device=logits.device)
        loss = cross_entropy(logits, wanted, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, states)
    return gradient[:-1]
