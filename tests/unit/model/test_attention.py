"""Span attention against the plain formula, mask and all."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedsea_mq.model.attention import Span, StepLayout, span_attention
from fedsea_mq.model.int8_rows import plain_quantise_rows
from fedsea_mq.model.kv_cache import KVCache, KVShape

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8
SHAPE = KVShape(range(3, 5), KV_HEADS, HEAD_DIM, torch.float32, "cpu")
BLOCK: Any = SimpleNamespace(layer_idx=4)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def formula(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None
) -> torch.Tensor:
    """`[heads, n, head_dim]` by softmax(QK^T / sqrt(d)) V over a causal, sliding mask."""
    key, value = (t.repeat_interleave(HEADS // KV_HEADS, dim=0) for t in (key, value))
    scores = query @ key.transpose(1, 2) / math.sqrt(HEAD_DIM)
    rows, columns = torch.arange(query.shape[1])[:, None], torch.arange(key.shape[1])
    hidden = (columns > rows) | (columns <= rows - (window or 10**9))
    return scores.masked_fill(hidden, -math.inf).softmax(-1) @ value


@pytest.mark.parametrize("compiled", [False, True], ids=["torch", "compiled"])
@pytest.mark.parametrize("window", [None, 1, 3, 6, 100])
@pytest.mark.parametrize("chunks", [[12], [1] * 12, [5, 1, 6], [6, 6]], ids=str)
def test_whatever_the_chunks_each_position_sees_what_the_formula_says(
    window: int | None, chunks: list[int], compiled: bool
) -> None:
    query, key, value = draw(HEADS, 12, HEAD_DIM), draw(KV_HEADS, 12, 8), draw(2, 12, HEAD_DIM) * 2
    cache, at, outputs = KVCache(SHAPE, 12), 0, []
    for count in chunks:
        rows = slice(at, at + count)
        output, weights = span_attention(
            BLOCK,
            query[None, :, rows],
            key[None, :, rows],
            value[None, :, rows],
            None,
            scaling=HEAD_DIM**-0.5,
            layout=StepLayout.of([Span(cache, at, count)], compiled=compiled),
            sliding_window=window,
        )
        assert weights is None
        outputs.append(output)
        at += count
    got = torch.cat(outputs, dim=1)[0].transpose(0, 1)
    torch.testing.assert_close(got, formula(query, key, value, window), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("compiled", [False, True], ids=["torch", "compiled"])
@pytest.mark.parametrize("counts", [[4, 1, 3], [1] * 8, [17, 1, 2, 20, 1]], ids=str)
def test_packed_sessions_do_not_see_each_other(counts: list[int], compiled: bool) -> None:
    total = sum(counts)
    query, key, value = draw(HEADS, total, 8), draw(KV_HEADS, total, 8), draw(2, total, 8) * 2
    spans = [Span(KVCache(SHAPE, 24), 0, count) for count in counts]
    packed, _ = span_attention(
        BLOCK,
        query[None],
        key[None],
        value[None],
        None,
        scaling=HEAD_DIM**-0.5,
        layout=StepLayout.of(spans, compiled=compiled),
    )
    at = 0
    for count in counts:
        rows = slice(at, at + count)
        alone = formula(query[:, rows], key[:, rows], value[:, rows], None)
        torch.testing.assert_close(packed[0, rows].transpose(0, 1), alone, atol=1e-6, rtol=1e-5)
        at += count
    assert packed.shape == (1, total, HEADS, HEAD_DIM)


def stored_as(dtype: torch.dtype, states: torch.Tensor) -> torch.Tensor:
    """`[heads, n, head_dim]` as a cache of that dtype holds it."""
    if dtype is not torch.int8:
        return states.to(dtype).float()
    quantised, scales = plain_quantise_rows(states)
    return quantised * scales


@pytest.mark.parametrize("counts", [[1] * 8, [17, 1, 2, 20, 1]], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
def test_a_cache_rounds_keys_and_values_to_its_dtype_and_nothing_else(
    counts: list[int], dtype: torch.dtype
) -> None:
    total = sum(counts)
    query, key, value = draw(HEADS, total, 8), draw(KV_HEADS, total, 8), draw(2, total, 8) * 2
    shape = KVShape(range(3, 5), KV_HEADS, HEAD_DIM, dtype, "cpu")
    for compiled in (False, True):
        spans = [Span(KVCache(shape, 24), 0, count) for count in counts]
        packed, _ = span_attention(
            BLOCK,
            query[None],
            key[None],
            value[None],
            None,
            scaling=HEAD_DIM**-0.5,
            layout=StepLayout.of(spans, compiled=compiled),
        )
        rounded_key, rounded_value = (stored_as(dtype, states) for states in (key, value))
        at = 0
        for count in counts:
            rows = slice(at, at + count)
            keys, values = rounded_key[:, rows], rounded_value[:, rows]
            alone = formula(query[:, rows], keys, values, None)
            got = packed[0, rows].transpose(0, 1)
            torch.testing.assert_close(got, alone, atol=1e-6, rtol=1e-5)
            at += count


def test_scores_far_apart_are_weighed_as_the_formula_weighs_them() -> None:
    """The compiled exponential, from where it is 1 to where it is as good as nothing."""
    query = torch.full((HEADS, 12, HEAD_DIM), 2.0)
    key = torch.linspace(-30, 30, 12)[None, :, None].expand(KV_HEADS, 12, HEAD_DIM)
    value = draw(KV_HEADS, 12, HEAD_DIM)
    output, _ = span_attention(
        BLOCK,
        query[None],
        key[None],
        value[None],
        None,
        scaling=HEAD_DIM**-0.5,
        layout=StepLayout.of([Span(KVCache(SHAPE, 12), 0, 12)], compiled=True),
    )
    got = output[0].transpose(0, 1)
    torch.testing.assert_close(got, formula(query, key, value, None), atol=1e-6, rtol=1e-6)


def test_a_span_says_where_the_session_stands_after_it() -> None:
    assert Span(KVCache(SHAPE, 0), 5, 3).stop == 8


@pytest.mark.parametrize(("start", "count"), [(3, 2), (4, 1), (-1, 1)])
def test_a_span_outside_its_cache_is_refused_before_compiled_code_sees_it(
    start: int, count: int
) -> None:
    with pytest.raises(ValueError, match="positions"):
        StepLayout.of([Span(KVCache(SHAPE, 4), start, count)], compiled=True)
