"""Rows of numbers in int8: symmetric, one fp32 scale a row.

    scale = max |x| / 127,    q = round(x * 127 / max |x|),    x is about q * scale

so that an element is off by at most half a scale. One formula for weights (a row is an output
channel), for what they are multiplied with (a row is a position) and for cached keys and values (a
row is a position of one head).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch

from fedsea_mq.model.intrinsics import AVAILABLE

if AVAILABLE:
    import numba

    from fedsea_mq.model.intrinsics import from_bits, larger_magnitude, to_int8

LARGEST: Final = 127.0
# The least magnitude that a row is scaled by: a row of zeros has a scale too.
_LEAST: Final = 1e-12


def quantise_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 `[..., n]` as int8 `[..., n]` and scales `[..., 1]`; compiled for rows on a CPU.

    A row with a NaN has a NaN for a scale, and one with an infinity an infinite one.
    """
    if not AVAILABLE or rows.device.type != "cpu":
        return plain_quantise_rows(rows)
    flat = rows.contiguous().view(-1, rows.shape[-1])
    quantised = torch.empty(flat.shape, dtype=torch.int8)
    scales = torch.empty(flat.shape[0])
    _quantise_rows(flat.numpy(), quantised.numpy(), scales.numpy())
    return quantised.view(rows.shape), scales.view(*rows.shape[:-1], 1)


def plain_quantise_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same numbers by torch's operators, in three times the time."""
    top = rows.abs().amax(-1, keepdim=True).clamp_min(_LEAST)
    # Of a number and a tensor, torch would take the reciprocal and multiply, which rounds twice.
    factor = torch.full_like(top, LARGEST) / top
    return (rows * factor).round().to(torch.int8), top / LARGEST


def _row_loop(row: Any, out: Any) -> Any:
    """Quantise one row into `out`; its scale."""
    bits = np.int32(0)
    for j in range(row.shape[0]):
        bits = larger_magnitude(bits, row[j])
    top = from_bits(bits)
    top = max(top, np.float32(_LEAST))
    factor = np.float32(LARGEST) / top
    for j in range(row.shape[0]):
        out[j] = to_int8(row[j] * factor)
    return top / np.float32(LARGEST)


def _rows_loop(rows: Any, out: Any, scales: Any) -> None:
    for index in range(rows.shape[0]):
        scales[index] = quantise_row(rows[index], out[index])


if AVAILABLE:
    # Without liberties in the order of operations: both ways are to give the same bits. It must be
    # said: numba would take them over from a loop that calls this one, if that is compiled first.
    _exact = numba.njit(fastmath=False, nogil=True, cache=True)
    quantise_row = _exact(_row_loop)
    _quantise_rows = _exact(_rows_loop)
