"""Attention of many alternatives for one position, each as if it were the only one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedsea_mq.model.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class CandidateLayout:
    """Each row is an alternative for position `start` of the sequence that `cache` is of.

    It sees what the cache holds before `start`, and itself. Nothing is written to the cache.
    """

    cache: KVCache
    start: int

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        block: int,
        scaling: float,
        window: int | None = None,
    ) -> torch.Tensor:
        """`[1, heads, rows, head_dim]` to `[1, rows, heads, head_dim]`.

        `key` and `value` are `[1, kv_heads, rows, head_dim]`.
        """
        oldest = 0 if window is None else max(0, self.start - window + 1)
        stored = self.cache.read(block, oldest, self.start)
        keys, values = (part.to(query.dtype)[:, None] for part in stored)
        heads, rows, head_dim = query.shape[1:]
        grouped = query[0].reshape(key.shape[1], -1, rows, head_dim)
        own_key, own_value = key[0][:, None], value[0][:, None]
        before = grouped @ keys.transpose(-1, -2)
        itself = (grouped * own_key).sum(dim=-1, keepdim=True)
        weights = (torch.cat((before, itself), dim=-1) * scaling).float().softmax(dim=-1)
        weights = weights.to(query.dtype)
        attended = weights[..., :-1] @ values + weights[..., -1:] * own_value
        return attended.reshape(heads, rows, head_dim).transpose(0, 1)[None]
