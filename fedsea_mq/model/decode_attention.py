"""Attention of single positions over their sessions' KV caches, read in place by compiled code.

A decode step attends with one query a session over keys and values that lie in as many buffers. One
call of a library kernel a session costs more than the attention itself at short contexts, and
gathering the buffers into one batch costs several times as much at long ones. Here one compiled
loop a block walks over all rows of the step, costs each its real length, and writes the row's own
key and value on the way. It computes in fp32, over caches of fp32, bf16 or int8: at long contexts a
step costs what reading the cache costs, and bf16 halves that, int8 nearly once more. Scales of int8
are applied to keys' scores and to values' weights, never to elements. Numba compiles it when it is
first used, so no compiler is needed to install.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from fedsea_mq.model.intrinsics import AVAILABLE

if TYPE_CHECKING:
    from fedsea_mq.model.attention import Span

if AVAILABLE:
    import numba
    from numba.core import types
    from numba.extending import overload

    from fedsea_mq.model.int8_rows import quantise_row
    from fedsea_mq.model.intrinsics import fetch, from_bits, narrow, pointer, widen

_NO_WINDOW: Final = 1 << 40
# What compiled code takes a cache's elements for: numpy has no bf16, so its bits.
_ELEMENTS: Final[dict[torch.dtype, np.ndarray[Any, Any]]] = {
    torch.float32: np.empty(0, dtype=np.float32),
    torch.bfloat16: np.empty(0, dtype=np.uint16),
    torch.int8: np.empty(0, dtype=np.int8),
}
# Positions between what is computed on and what is asked for from memory.
_AHEAD: Final = 96
_LOG2_E: Final = 1.4426950408889634
# ln 2 in two parts, the first exact in few bits, so that x - n ln 2 loses nothing.
_LN2_HIGH: Final = 0.693359375
_LN2_LOW: Final = -2.12194440e-4
_LEAST_EXPONENT: Final = -87.0


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """Where each row's session keeps its cache, and the row's position in it; one array a field."""

    address: np.ndarray[Any, np.dtype[np.int64]]
    block_stride: np.ndarray[Any, np.dtype[np.int64]]
    value_offset: np.ndarray[Any, np.dtype[np.int64]]
    scale_offset: np.ndarray[Any, np.dtype[np.int64]]
    capacity: np.ndarray[Any, np.dtype[np.int64]]
    position: np.ndarray[Any, np.dtype[np.int64]]
    element: np.ndarray[Any, Any]
    """Empty, of the type that the caches' elements are read as."""
    first_block: int
    longest: int
    # Addresses keep nothing alive; this does.
    spans: Sequence[Span]

    @classmethod
    def of(cls, spans: Sequence[Span]) -> DecodeRows:
        """One row for each position of the spans, in order."""
        columns: list[list[int]] = [[], [], [], [], [], []]
        for span in spans:
            where = span.cache.location
            if not 0 <= span.start < span.stop <= where[-1]:  # compiled code checks no bounds
                raise ValueError(f"positions {span.start} to {span.stop} of {where[-1]}")
            for position in range(span.start, span.stop):
                for column, value in zip(columns, (*where, position), strict=True):
                    column.append(value)
        address, stride, values, scales, capacity, positions = (
            np.array(column, dtype=np.int64) for column in columns
        )
        first, longest = spans[0].cache.first_block, max(span.stop for span in spans)
        element = _ELEMENTS[spans[0].cache.dtype]
        return cls(
            address, stride, values, scales, capacity, positions, element, first, longest, spans
        )


def readable(dtype: torch.dtype) -> bool:
    """Whether compiled code can attend over caches of that dtype."""
    return AVAILABLE and dtype in _ELEMENTS


def decode_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: DecodeRows,
    *,
    block: int,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """Store each row's key and value in its cache, then attend over the cache up to the row.

    `query` is `[rows, heads, head_dim]`, `key` and `value` `[rows, kv_heads, head_dim]`, all fp32
    and contiguous on the CPU; `block` is the model's number of it. Gives `[rows, heads, head_dim]`.
    """
    heads, kv_heads = query.shape[1], key.shape[1]
    out = torch.empty_like(query)
    scores = np.empty((heads // kv_heads, rows.longest), dtype=np.float32)
    _attend(
        query.numpy(),
        key.numpy(),
        value.numpy(),
        rows.address + (block - rows.first_block) * rows.block_stride,
        rows.value_offset,
        rows.scale_offset,
        rows.capacity,
        rows.position,
        rows.element,
        np.float32(scaling),
        _NO_WINDOW if window is None else window,
        scores,
        out.numpy(),
    )
    return out


def _loop(  # noqa: PLR0917 - compiled code takes arrays, not objects
    query: Any,
    key: Any,
    value: Any,
    address: Any,
    value_offset: Any,
    scale_offset: Any,
    capacity: Any,
    position: Any,
    element: Any,
    scaling: Any,
    window: int,
    scores: Any,
    out: Any,
) -> None:
    """See `decode_attention`. Rows of one session come in the order of their positions."""
    kv_heads, head_dim = key.shape[1], key.shape[2]
    group = query.shape[1] // kv_heads
    for row in range(query.shape[0]):
        last = position[row]
        oldest = max(0, last + 1 - window)
        count = last + 1 - oldest
        to_values = address[row] + value_offset[row]
        shape = (kv_heads, capacity[row], head_dim)
        keys = numba.carray(pointer(address[row]), shape, element.dtype)
        values = numba.carray(pointer(to_values), shape, element.dtype)
        # In a cache without scales there is nothing here, and nothing reads it.
        to_scales, per_row = scale_offset[row], (kv_heads, capacity[row])
        key_scales = numba.carray(pointer(address[row] + to_scales), per_row, np.float32)
        value_scales = numba.carray(pointer(to_values + to_scales), per_row, np.float32)
        for head in range(kv_heads):
            _store(key[row, head], keys[head, last], key_scales[head], last)
            _store(value[row, head], values[head, last], value_scales[head], last)
            for member in range(group):
                _attend_head(
                    query[row, head * group + member],
                    keys[head, oldest : last + 1],
                    values[head, oldest : last + 1],
                    key_scales[head, oldest : last + 1],
                    value_scales[head, oldest : last + 1],
                    scaling,
                    scores[member, :count],
                    out[row, head * group + member],
                )


def _head_loop(  # noqa: PLR0917
    query: Any,
    keys: Any,
    values: Any,
    key_scales: Any,
    value_scales: Any,
    scaling: Any,
    scores: Any,
    out: Any,
) -> None:
    """Softmax of the scaled products of one query with the keys, then the mean of the values."""
    _products(query, keys, scores)
    _apply_scales(scores, key_scales, keys)
    total = _exponentials(scores, scaling)
    _apply_scales(scores, value_scales, values)
    _weighted_sum(scores, values, out)
    for j in range(out.shape[0]):
        out[j] /= total


def _product_loop(query: Any, keys: Any, scores: Any) -> None:
    """The products of a query with each key."""
    count, head_dim = keys.shape
    whole = count - count % 4
    for t in range(0, whole, 4):
        a = b = c = d = np.float32(0.0)
        _fetch_rows(keys, t + _AHEAD)
        for j in range(head_dim):
            a += query[j] * widen(keys[t, j])
            b += query[j] * widen(keys[t + 1, j])
            c += query[j] * widen(keys[t + 2, j])
            d += query[j] * widen(keys[t + 3, j])
        scores[t], scores[t + 1], scores[t + 2], scores[t + 3] = a, b, c, d
    for t in range(whole, count):
        a = np.float32(0.0)
        for j in range(head_dim):
            a += query[j] * widen(keys[t, j])
        scores[t] = a


def _exponential_loop(scores: Any, scaling: Any) -> Any:
    """Scale the scores and raise e to them, the largest as 1; their sum."""
    top, total = np.float32(-np.inf), np.float32(0.0)
    for t in range(scores.shape[0]):
        scores[t] *= scaling
        top = max(top, scores[t])
    for t in range(scores.shape[0]):
        scores[t] = _exp(scores[t] - top)
        total += scores[t]
    return total


def _sum_loop(weights: Any, values: Any, out: Any) -> None:
    """The sum of the values, each times its weight."""
    count, head_dim = values.shape
    whole = count - count % 4
    for j in range(head_dim):
        out[j] = np.float32(0.0)
    for t in range(0, whole, 4):
        a, b, c, d = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        _fetch_rows(values, t + _AHEAD)
        for j in range(head_dim):
            out[j] += (
                a * widen(values[t, j])
                + b * widen(values[t + 1, j])
                + c * widen(values[t + 2, j])
                + d * widen(values[t + 3, j])
            )
    for t in range(whole, count):
        for j in range(head_dim):
            out[j] += weights[t] * widen(values[t, j])


def _fetch_formula(rows: Any, first: int) -> None:
    """Have four rows on their way from memory by the time that the loop comes to them."""
    if first + 4 <= rows.shape[0]:
        size = 4 * rows.shape[1] * rows.itemsize
        start = rows.ctypes.data + first * rows.shape[1] * rows.itemsize
        for line in range(0, size, 64):
            fetch(start + line)


def _exp_formula(x: Any) -> Any:
    """e^x for x <= 0 in fp32, to 2 units in the last place; unlike a call, it runs in vectors.

    Range reduction and the polynomial of Cephes' `expf`: x = n ln 2 + r, e^x = 2^n e^r.
    """
    x = max(x, np.float32(_LEAST_EXPONENT))
    n = np.floor(x * np.float32(_LOG2_E) + np.float32(0.5))
    r = x - n * np.float32(_LN2_HIGH) - n * np.float32(_LN2_LOW)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    grown = p * r * r + r + np.float32(1.0)
    return grown * from_bits((np.int32(n) + np.int32(127)) << np.int32(23))


def _store(row: Any, stored: Any, scales: Any, position: Any) -> None:
    """Write one head's key or value of one position; compiled as the cache's elements are."""


def _store_rounded(row: Any, stored: Any, scales: Any, position: Any) -> None:
    for j in range(row.shape[0]):
        stored[j] = narrow(row[j], stored[j])


def _store_scaled(row: Any, stored: Any, scales: Any, position: Any) -> None:
    scales[position] = quantise_row(row, stored)


def _apply_scales(numbers: Any, scales: Any, elements: Any) -> None:
    """Multiply one number a position by the scale of its elements, if they are such as have one."""


def _nothing(numbers: Any, scales: Any, elements: Any) -> None:
    pass


def _multiply(numbers: Any, scales: Any, elements: Any) -> None:
    for t in range(numbers.shape[0]):
        numbers[t] *= scales[t]


if AVAILABLE:

    @overload(_store)  # type: ignore[untyped-decorator]
    def _choose_store(row: Any, stored: Any, scales: Any, position: Any) -> Any:
        return _store_scaled if stored.dtype == types.int8 else _store_rounded

    @overload(_apply_scales)  # type: ignore[untyped-decorator]
    def _choose_apply_scales(numbers: Any, scales: Any, elements: Any) -> Any:
        return _multiply if elements.dtype == types.int8 else _nothing

    # What these call is compiled in the same way, unless it says otherwise itself.
    _compiled = numba.njit(fastmath={"reassoc", "contract", "nsz"}, nogil=True, cache=True)
    _exp = _compiled(_exp_formula)
    _fetch_rows = _compiled(_fetch_formula)
    _products = _compiled(_product_loop)
    _exponentials = _compiled(_exponential_loop)
    _weighted_sum = _compiled(_sum_loop)
    _attend_head = _compiled(_head_loop)
    _attend = _compiled(_loop)
