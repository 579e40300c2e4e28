"""Attention of single positions over their sessions' KV caches, read in place by compiled code.

A decode step attends with one query a session over keys and values that lie in as many buffers. One
call of a library kernel a session costs more than the attention itself at short contexts, and
gathering the buffers into one batch costs several times as much at long ones. Here one compiled
loop a block walks over all rows of the step, costs each its real length, and writes the row's own
key and value on the way. It computes in fp32, over caches of fp32 or of bf16: at long contexts a
step costs what reading the cache costs, and bf16 halves that. Numba compiles it when it is first
used, so no compiler is needed to install.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

if TYPE_CHECKING:
    from fedsea_mq.model.attention import Span

try:
    import numba
    from llvmlite import ir
    from numba.core import cgutils, types
    from numba.extending import intrinsic
except ImportError:  # no wheel for this Python or platform yet: callers use torch's own attention
    numba = None

AVAILABLE: Final = numba is not None
_NO_WINDOW: Final = 1 << 40
# What compiled code takes a cache's elements for: numpy has no bf16, so its bits.
_ELEMENTS: Final[dict[torch.dtype, np.ndarray[Any, Any]]] = {
    torch.float32: np.empty(0, dtype=np.float32),
    torch.bfloat16: np.empty(0, dtype=np.uint16),
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
        element = _ELEMENTS[spans[0].cache.dtype]
        return cls(address, stride, offset, capacity, positions, element, first, longest, spans)


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
        shape = (kv_heads, capacity[row], head_dim)
        keys = numba.carray(_pointer(address[row]), shape, element.dtype)
        values = numba.carray(_pointer(address[row] + value_offset[row]), shape, element.dtype)
        last = position[row]
        oldest = max(0, last + 1 - window)
        count = last + 1 - oldest
        for head in range(kv_heads):
            for j in range(head_dim):
                keys[head, last, j] = _narrow(key[row, head, j], keys[head, last, j])
                values[head, last, j] = _narrow(value[row, head, j], values[head, last, j])
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
    whole = count - count % 4
    top = np.float32(-np.inf)
    for t in range(0, whole, 4):
        a = b = c = d = np.float32(0.0)
        _fetch_rows(keys, t + _AHEAD)
        for j in range(head_dim):
            a += query[j] * _widen(keys[t, j])
            b += query[j] * _widen(keys[t + 1, j])
            c += query[j] * _widen(keys[t + 2, j])
            d += query[j] * _widen(keys[t + 3, j])
        scores[t], scores[t + 1], scores[t + 2], scores[t + 3] = a, b, c, d
    for t in range(whole, count):
        a = np.float32(0.0)
        for j in range(head_dim):
            a += query[j] * _widen(keys[t, j])
        scores[t] = a
    for t in range(count):
        scores[t] *= scaling
        top = max(top, scores[t])
    total = np.float32(0.0)
    for t in range(count):
        scores[t] = _exp(scores[t] - top)
        total += scores[t]
    for j in range(head_dim):
        out[j] = np.float32(0.0)
    for t in range(0, whole, 4):
        a, b, c, d = scores[t], scores[t + 1], scores[t + 2], scores[t + 3]
        _fetch_rows(values, t + _AHEAD)
        for j in range(head_dim):
            out[j] += (
                a * _widen(values[t, j])
                + b * _widen(values[t + 1, j])
                + c * _widen(values[t + 2, j])
                + d * _widen(values[t + 3, j])
            )
    for t in range(whole, count):
        for j in range(head_dim):
            out[j] += scores[t] * _widen(values[t, j])
    for j in range(head_dim):
        out[j] /= total


def _fetch_formula(rows: Any, first: int) -> None:
    """Have four rows on their way from memory by the time that the loop comes to them."""
    if first + 4 <= rows.shape[0]:
        size = 4 * rows.shape[1] * rows.itemsize
        start = rows.ctypes.data + first * rows.shape[1] * rows.itemsize
        for line in range(0, size, 64):
            _fetch(start + line)


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
    return grown * _from_bits((np.int32(n) + np.int32(127)) << np.int32(23))


if AVAILABLE:

    @intrinsic  # type: ignore[untyped-decorator]
    def _pointer(_: Any, address: Any) -> Any:
        """An address as a pointer that `carray` takes."""

        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], cgutils.voidptr_t)

        return types.voidptr(address), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def _fetch(_: Any, address: Any) -> Any:
        """Ask for the cache line at an address."""

        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            pointer = builder.inttoptr(arguments[0], cgutils.voidptr_t)
            word = ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, word, word, word])
            fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            # To read, to keep in all caches, data.
            builder.call(fetch, [pointer, word(0), word(3), word(1)])
            return _context.get_dummy_value()

        return types.void(address), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def _from_bits(_: Any, bits: Any) -> Any:
        """The fp32 number whose bits an integer has."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            bits32 = context.cast(builder, arguments[0], signature.args[0], types.int32)
            return builder.bitcast(bits32, ir.FloatType())

        return types.float32(bits), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def _widen(_: Any, stored: Any) -> Any:
        """An element of a cache as fp32: itself, or bf16's bits as the upper half."""

        def generate(_context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            if signature.args[0] == types.float32:
                return arguments[0]
            word = ir.IntType(32)
            bits = builder.shl(builder.zext(arguments[0], word), ir.Constant(word, 16))
            return builder.bitcast(bits, ir.FloatType())

        return types.float32(stored), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def _narrow(_: Any, value: Any, like: Any) -> Any:
        """An fp32 number as an element `like` that of a cache; bf16 by round half to even."""

        def generate(_context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            if signature.args[1] == types.float32:
                return arguments[0]
            word, half = ir.IntType(32), ir.IntType(16)
            bits = builder.bitcast(arguments[0], word)
            sixteen = ir.Constant(word, 16)
            odd = builder.and_(builder.lshr(bits, sixteen), ir.Constant(word, 1))
            rounded = builder.add(bits, builder.add(odd, ir.Constant(word, 0x7FFF)))
            return builder.trunc(builder.lshr(rounded, sixteen), half)

        return like(value, like), generate

    _compiled = numba.njit(fastmath={"reassoc", "contract", "nsz"}, nogil=True, cache=True)
    _exp = _compiled(_exp_formula)
    _fetch_rows = _compiled(_fetch_formula)
    _attend_head = _compiled(_head_loop)
    _attend = _compiled(_loop)
