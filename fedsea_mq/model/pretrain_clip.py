"""Keep attention scores small in training, so that rounding errors stay small in use."""

from __future__ import annotations

from typing import Any

import torch


class QueryClip:
    """Scales a head's query weights down whenever its scores could pass `limit`.

    The idea is QK-Clip's (Kimi K2 technical report, 2025, section 2.1); here a head's largest score
    is bounded by Cauchy and Schwarz, |q| |k| / sqrt(head size), which needs no look at the scores
    themselves, and which rotary positions leave as it is. Softmax passes on a score's absolute
    rounding error, which grows with the score: unclipped, one block reached 98 and multiplied the
    model's fp32 error by five.
    """

    def __init__(self, model: Any, limit: float) -> None:
        self._limit = limit
        self._attentions = [layer.self_attn for layer in model.model.layers]
        self._norms: dict[torch.nn.Module, torch.Tensor] = {}
        for attention in self._attentions:
            for projection in (attention.q_proj, attention.k_proj):
                projection.register_forward_hook(self._note(attention.head_dim))

    def _note(self, head_dim: int) -> Any:
        def hook(projection: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            heads = output.detach().view(*output.shape[:-1], -1, head_dim)
            self._norms[projection] = heads.float().norm(dim=-1).flatten(0, -2).amax(0)

        return hook

    @torch.no_grad()
    def clip(self) -> None:
        """Call after each optimiser step: acts on what the last forward pass saw."""
        for attention in self._attentions:
            queries = self._norms[attention.q_proj]
            keys = self._norms[attention.k_proj]
            shared = len(queries) // len(keys)
            bound = queries * keys.repeat_interleave(shared) * attention.head_dim**-0.5
            factor = (self._limit / bound).clamp(max=1.0)
            weight = attention.q_proj.weight
            weight.mul_(factor.repeat_interleave(attention.head_dim)[:, None])
