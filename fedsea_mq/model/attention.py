"""Attention over each session's own KV cache, inside a packed ragged batch.

Registered with transformers under `SPAN_ATTENTION`, so that every supported family keeps its own
projections, norms and rotary embedding, and only the attention itself is ours. The batch is packed:
the positions of all sessions lie one after another in a single row, and a `Span` says which rows
are whose. Masks are rebuilt from lengths; none ever travels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from fedsea_mq.model.candidate_attention import CandidateLayout
from fedsea_mq.model.decode_attention import DecodeRows, decode_attention, readable
from fedsea_mq.model.kv_cache import KVCache, KVShape
from fedsea_mq.model.packed_attention import PackedLayout

SPAN_ATTENTION: Final = "fedsea_spans"
# The positions of a speculative span at most. Longer spans are matrix products that the library
# does better.
_SHORT_POSITIONS: Final = 16


@dataclass(frozen=True, slots=True)
class Span:
    """`count` new positions of one session, the first at position `start`.

    The outputs of the last `read` of them are of interest. `adapter` names what the blocks are run
    with, if they hold adapters.
    """

    cache: KVCache
    start: int
    count: int
    read: int = 1
    adapter: str | None = None

    @property
    def stop(self) -> int:
        """The positions that the session holds after the step."""
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class StepLayout:
    """Which rows of a packed step are whose, and how each span is attended to.

    Short spans (decodes and the like) go through one compiled loop for all of them, where there is
    one for the cache's dtype and device; the rest through torch's attention, a span at a time.
    """

    long: Sequence[tuple[slice, Span]]
    short: DecodeRows | None
    short_rows: torch.Tensor | None
    """The rows of the short spans; None if those are all rows."""

    @classmethod
    def of(cls, spans: Sequence[Span], *, compiled: bool) -> StepLayout:
        """Lay out a step; `compiled` if the caches are such that compiled code can read them."""
        short: list[tuple[slice, Span]] = []
        long: list[tuple[slice, Span]] = []
        row = 0
        for span in spans:
            kind = short if compiled and span.count <= _SHORT_POSITIONS else long
            kind.append((slice(row, row + span.count), span))
            row += span.count
        if not short:
            return cls(long, None, None)
        listed = DecodeRows.of([span for _, span in short])
        if not long:
            return cls(long, listed, None)
        return cls(long, listed, torch.cat([torch.arange(r.start, r.stop) for r, _ in short]))


def compiled_attention(shape: KVShape) -> bool:
    """Whether short spans over caches of this kind can go through the compiled loop.

    If so it is compiled, or read from the disk, now and not in some session's first step.
    """
    usable = readable(shape.dtype) and shape.device == "cpu"
    if usable:
        compile_attention(shape.dtype)
    return usable


def compile_attention(dtype: torch.dtype) -> None:
    """Have the compiled loop ready, with the tens of megabytes that its compiler takes."""
    if readable(dtype):
        rows = DecodeRows.of([Span(KVCache(KVShape(range(1), 1, 1, dtype, "cpu"), 1), 0, 1)])
        states = torch.zeros(1, 1, 1)
        decode_attention(states, states, states, rows, block=0, scaling=1.0, window=None)


def span_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    layout: StepLayout | PackedLayout | CandidateLayout,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Write the new keys and values to each span's cache and attend over it.

    A `PackedLayout` has no caches: its sequences attend to themselves, as in training. A
    `CandidateLayout` has one, and only reads it.

    `query` is `[1, heads, total, head_dim]`, `total` the positions of all spans; `key` and `value`
    are `[1, kv_heads, total, head_dim]`, already rotated; `layout` says whose the positions are.
    Gives `[1, total, heads, head_dim]`, as transformers' own attention functions do.
    """
    if isinstance(layout, PackedLayout):
        attend = partial(layout.attend, scaling=scaling, window=sliding_window, dropout=dropout)
        return attend(query, key, value), None
    block = int(module.layer_idx)  # type: ignore[arg-type]  # every attention module has one
    if isinstance(layout, CandidateLayout):
        attend = partial(layout.attend, block=block, scaling=scaling, window=sliding_window)
        return attend(query, key, value), None
    by_row = [states[0].transpose(0, 1) for states in (query, key, value)]
    decode = partial(decode_attention, block=block, scaling=scaling, window=sliding_window)
    if layout.short is not None and layout.short_rows is None:
        q, k, v = (states.contiguous() for states in by_row)
        return decode(q, k, v, layout.short)[None], None
    heads, total, head_dim = query.shape[1:]
    out = query.new_empty((total, heads, head_dim))
    if layout.short is not None:
        q, k, v = (states[layout.short_rows].contiguous() for states in by_row)
        out[layout.short_rows] = decode(q, k, v, layout.short)
    for rows, span in layout.long:
        span.cache.write(block, span.start, key[0, :, rows], value[0, :, rows])
        attended = _attend(query[0, :, rows], span, block, scaling, sliding_window)
        out[rows] = attended.transpose(0, 1)
    return out[None], None


def _attend(
    query: torch.Tensor, span: Span, block: int, scaling: float, window: int | None
) -> torch.Tensor:
    """Causal attention of `[heads, count, head_dim]` over the span's cache."""
    # The oldest position that the first new position may see.
    oldest = 0 if window is None else max(0, span.start - window + 1)
    stored = span.cache.read(block, oldest, span.stop)
    keys, values = (part.to(query.dtype) for part in stored)
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
