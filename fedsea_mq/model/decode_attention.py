"""Attention of single positions over their sessions' KV caches, read in place by compiled code.

A decode step attends with one query a session over keys and values that lie in as many buffers. One
call of a library kernel a session costs more than the attention itself at short contexts, and
gathering the buffers into one batch costs several times as much at long ones. Here one compiled
loop a block walks over all rows of the step, costs each its real length, and writes the row's own
key and value on the way. It computes in fp32. Numba compiles it when it is first used, so no
compiler is needed to install.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

if TYPE_CHECKING:
    from fedsea_mq.model.attention import Span

try:
    import numba
    from numba.core import cgutils, types
    from numba.extending import intrinsic
except ImportError:  # no wheel for this Python or platform yet: callers use torch's own attention
    numba = None

AVAILABLE: Final = numba is not None
_NO_WINDOW: Final = 1 << 40


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """Where each row's session keeps its cache, and the row's position in it; one array a field."""

    address: np.ndarray[Any, np.dtype[np.int64]]
    block_stride: np.ndarray[Any, np.dtype[np.int64]]
    value_offset: np.ndarray[Any, np.dtype[np.int64]]
    capacity: np.ndarray[Any, np.dtype[np.int64]]
    position: np.ndarray[Any, np.dtype[np.int64]]
    first_block: int
    longest: int
    # Addresses keep nothing alive; this does.
    spans: Sequence[Span]

    @classmethod
    def of(cls, spans: Sequence[Span]) -> DecodeRows:
        """One row for each position of the spans, in order."""
        columns: list[list[int]] = [[], [], [], [], []]
        for span in spans:
            where = span.cache.location
            if not 0 <= span.start < span.stop <= where[-1]:  # compiled code checks no bounds
                raise ValueError(f"positions {span.start} to {span.stop} of {where[-1]}")
            for position in range(span.start, span.stop):
                for column, value in zip(columns, (*where, position), strict=True):
                    column.append(value)
        address, stride, offset, capacity, positions = (
            np.array(column, dtype=np.int64) for column in columns
        )
        first, longest = spans[0].cache.first_block, max(span.stop for span in spans)
        return cls(address, stride, offset, capacity, positions, first, longest, spans)


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
        rows.capacity,
        rows.position,
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
    capacity: Any,
    position: Any,
    scaling: Any,
    window: int,
    scores: Any,
    out: Any,
) -> None:
    """See `decode_attention`. Rows of one session come in the order of their positions."""
    kv_heads, head_dim = key.shape[1], key.shape[2]
    group = query.shape[1] // kv_heads
    for row in range(query.shape[0]):
        shape = (kv_heads, capacity[row], head_dim)
        keys = numba.carray(_pointer(address[row]), shape, np.float32)
        values = numba.carray(_pointer(address[row] + value_offset[row]), shape, np.float32)
        last = position[row]
        oldest = max(0, last + 1 - window)
        count = last + 1 - oldest
        for head in range(kv_heads):
            for j in range(head_dim):
                keys[head, last, j] = key[row, head, j]
                values[head, last, j] = value[row, head, j]
            for member in range(group):
                _attend_head(
                    query[row, head * group + member],
                    keys[head, oldest : last + 1],
                    values[head, oldest : last + 1],
                    scaling,
                    scores[member, :count],
                    out[row, head * group + member],
                )


def _head_loop(  # noqa: PLR0917
    query: Any, keys: Any, values: Any, scaling: Any, scores: Any, out: Any
) -> None:
    """Softmax of the scaled products of one query with the keys, then the mean of the values."""
    count, head_dim = keys.shape
    top = np.float32(-np.inf)
    for t in range(count):
        product = np.float32(0.0)
        for j in range(head_dim):
            product += query[j] * keys[t, j]
        scores[t] = product * scaling
        top = max(top, scores[t])
    total = np.float32(0.0)
    for t in range(count):
        scores[t] = math.exp(scores[t] - top)
        total += scores[t]
    for j in range(head_dim):
        out[j] = np.float32(0.0)
    for t in range(count):
        share = scores[t] / total
        for j in range(head_dim):
            out[j] += share * values[t, j]


if AVAILABLE:

    @intrinsic  # type: ignore[untyped-decorator]
    def _pointer(_: Any, address: Any) -> Any:
        """An address as a pointer that `carray` takes."""

        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], cgutils.voidptr_t)

        return types.voidptr(address), generate

    _compiled = numba.njit(fastmath={"reassoc", "contract", "nsz"}, nogil=True, cache=True)
    _attend_head = _compiled(_head_loop)
    _attend = _compiled(_loop)
