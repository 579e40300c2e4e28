"""Labels from the gradient that a training client sends back: what the answer was.

The trunk knows its own outputs, so with the public tail it knows the logits p of every position.
The gradient of the loss by the logits of a position is (p - onehot(label)) / tokens, and what comes
back is that, through the tail's Jacobian. The tail is causal: the row of the last position with a
loss depends on its own label alone. So labels are found from the end, each by the nearest of what
every token of the vocabulary would have sent, and what it sent is taken off the rows before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch

from fedsea_mq.model.attention import Span
from fedsea_mq.model.kv_cache import KVCache
from fedsea_mq.model.packed_attention import PackedLayout
from fedsea_mq.privacy.attacks.public_model import PublicModel

# What is less than this share of the longest row's square is rounding.
_ROUNDING: Final = 1e-10
# A label explains at least this share of what is left of a row; of what rounding left, the best of
# a vocabulary explains about 2 ln(vocab) / hidden.
_EXPLAINS: Final = 0.5
# How sure, in nats beyond the choice among all tokens, before noise is taken for a label.
_SURE: Final = 6.0


@dataclass(frozen=True, slots=True)
class GradientSeen:
    """One sequence in training, as the trunk saw it: all `[positions, hidden]`, fp32.

    `received` are its states, `outputs` what the trunk answered, `gradient` what came back: that of
    the loss by the outputs.
    """

    received: torch.Tensor
    outputs: torch.Tensor
    gradient: torch.Tensor


class LabelMatching:
    """Finds labels with a public tail.

    `gradient_noise` is the noise on gradients, in RMS of the gradient that it was added to.
    """

    def __init__(self, model: PublicModel, gradient_noise: float = 0.0) -> None:
        self._model = model
        self._noise = gradient_noise

    def recover(self, seen: GradientSeen) -> dict[int, int]:
        """Token ids by the position that they are at: one after the position with the loss."""
        tail = _TailAtWork(self._model, seen.outputs)
        left = seen.gradient.clone()
        rounding = _ROUNDING * float(seen.gradient.square().sum(dim=-1).max())
        chance = self._chance(seen.gradient)
        found: dict[int, int] = {}
        for position in reversed(range(len(left) - 1)):
            row = left[position]
            size = float(row.square().sum())
            if size <= max(rounding, chance):
                continue
            sent = tail.sent_for_each_label(position)
            # The scale, one over the tokens that the loss is a mean of, is not known: it is fitted.
            along = (sent @ row).clamp_min(0.0)
            explained = along.square() / sent.square().sum(dim=-1)
            label = int(explained.argmax())
            if float(explained[label]) < (chance or _EXPLAINS * size):
                continue
            found[position + 1] = label
            scale = float(along[label] / sent[label].square().sum())
            left -= scale * tail.sent_from(position, label)
        return found

    def _chance(self, gradient: torch.Tensor) -> float:
        """What the best of all labels may explain of a row's square where there is only noise."""
        observed = float(gradient.square().mean())
        variance = observed * self._noise**2 / (1 + self._noise**2)
        return 2 * variance * (math.log(self._model.vocab) + _SURE)


class _TailAtWork:
    """The public tail on one sequence of the trunk's outputs."""

    def __init__(self, model: PublicModel, outputs: torch.Tensor) -> None:
        self._model = model
        self._inputs = outputs.detach().clone().requires_grad_()
        self._lm_head = torch.as_tensor(model.tail.lm_head.weight).float()
        layout = PackedLayout((len(outputs),))
        with torch.enable_grad():
            states = model.whole(model.tail.run)(self._inputs, layout)
            self._normed = model.tail.norm(states).float()
        self._probabilities = (self._normed.detach() @ self._lm_head.T).softmax(dim=-1)
        self._cache: KVCache = model.tail.run.new_cache(len(outputs))
        with torch.no_grad():
            model.tail.run(outputs, [Span(self._cache, 0, len(outputs), adapter=model.adapter)])

    def sent_for_each_label(self, position: int) -> torch.Tensor:
        """`[vocab, hidden]`: the position's own row of the gradient, for each label it may have."""
        by_output = self._lm_head @ self._jacobian(position)
        mean: torch.Tensor = self._probabilities[position] @ by_output
        return mean - by_output

    def _jacobian(self, position: int) -> torch.Tensor:
        """`[hidden, hidden]`: of the normed state by the output, both of this position."""
        model, hidden = self._model, self._inputs.shape[1]
        # A row for each element of the result: they do not see each other.
        rows = self._inputs.detach()[position].expand(hidden, -1).clone().requires_grad_()
        with torch.enable_grad():
            states = model.tail.run.alternatives(rows, self._cache, position, model.adapter)
            diagonal = model.tail.norm(states).float().diagonal().sum()
        (jacobian,) = torch.autograd.grad(diagonal, rows)
        return jacobian

    def sent_from(self, position: int, label: int) -> torch.Tensor:
        """`[positions, hidden]`: what the label of one position adds to the gradient of all."""
        by_logits = self._probabilities[position].clone()
        by_logits[label] -= 1.0
        cotangent = torch.zeros_like(self._normed)
        cotangent[position] = by_logits @ self._lm_head
        (gradient,) = torch.autograd.grad(self._normed, self._inputs, cotangent, retain_graph=True)
        return gradient
