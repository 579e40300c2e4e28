"""Attention over each session's own KV cache, inside a packed ragged batch.

Registered with transformers under `SPAN_ATTENTION`, so that every supported family keeps its own
projections, norms and rotary embedding, and only the attention itself is ours. The batch is packed:
the positions of all sessions lie one after another in a single row, and a `Span` says which rows
are whose. Masks are rebuilt from lengths; none ever travels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from fedsea_mq.model.kv_cache import KVCache

SPAN_ATTENTION: Final = "fedsea_spans"


@dataclass(frozen=True, slots=True)
class Span:
    """`count` new positions of one session, the first at position `start`."""

    cache: KVCache
    start: int
    count: int

    @property
    def stop(self) -> int:
        """The positions that the session holds after the step."""
        return self.start + self.count


def span_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    spans: Sequence[Span],
    sliding_window: int | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Write the new keys and values to each span's cache and attend over it.

    `query` is `[1, heads, total, head_dim]`, `total` the positions of all spans; `key` and `value`
    are `[1, kv_heads, total, head_dim]`, already rotated; `spans` says whose the positions are, in
    order. Gives `[1, total, heads, head_dim]`, as transformers' own attention functions do.
    """
    block = int(module.layer_idx)  # type: ignore[arg-type]  # every attention module has one
    outputs, row = [], 0
    for span in spans:
        rows = slice(row, row + span.count)
        span.cache.write(block, span.start, key[0, :, rows], value[0, :, rows])
        outputs.append(_attend(query[0, :, rows], span, block, scaling, sliding_window))
        row += span.count
    return torch.cat(outputs, dim=1).transpose(0, 1).unsqueeze(0), None


def _attend(
    query: torch.Tensor, span: Span, block: int, scaling: float, window: int | None
) -> torch.Tensor:
    """Causal attention of `[heads, count, head_dim]` over the span's cache."""
    # The oldest position that the first new position may see.
    oldest = 0 if window is None else max(0, span.start - window + 1)
    keys, values = span.cache.read(block, oldest, span.stop)
    if span.count == 1:
        return _attend_one(query, keys, values, scaling)
    mask = _mask(span, oldest, window, query.device)
    result = scaled_dot_product_attention(
        query[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=True,
    )
    return result[0]


def _attend_one(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float
) -> torch.Tensor:
    """A single position sees all keys: query heads of one KV head act as rows, nothing repeats."""
    heads, _, head_dim = query.shape
    grouped = query.reshape(1, keys.shape[0], -1, head_dim)
    result = scaled_dot_product_attention(grouped, keys[None], values[None], scale=scaling)
    return result.reshape(heads, 1, head_dim)


def _mask(span: Span, oldest: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """`[count, keys]` of what each position may see; None where plain causal says it."""
    if span.start == 0 and (window is None or span.stop <= window):
        return None
    rows = torch.arange(span.start, span.stop, device=device)[:, None]
    columns = torch.arange(oldest, span.stop, device=device)[None, :]
    seen = columns <= rows
    return seen if window is None else seen & (columns > rows - window)


AttentionInterface.register(SPAN_ATTENTION, span_attention)
