"""Linear layers with int8 weights: one scale an output channel, one a row of what comes in.

The product of int8 factors is exact in int32, so all that is lost is lost in rounding the factors.
oneDNN multiplies them with the weight laid out once, as `PackedLinear` does in bf16, and reads half
the bytes; that needs VNNI or AMX. Of the other operators of torch's CPU builds,
`_weight_int8pack_mm` was as fast for 1 row and 5 to 18 times as slow for 64, and `_int_mm` lays the
weight out in every call.
"""

from __future__ import annotations

from functools import cache
from typing import Final, cast

import torch
from torch import nn

from fedsea_mq.model.int8_rows import LARGEST, quantise_rows

# Rows for which oneDNN chooses the layout; other numbers of rows run on it as well.
_TYPICAL_ROWS: Final = 16
# The layout is for unsigned rows with their zero in the middle. For signed ones oneDNN has only a
# reference loop on processors without AMX, and often for one row with it: 100 times as slow.
_MIDDLE: Final = 128
# Factors of the probe: processors without VNNI saturate sums of two products at 16 bits.
_PROBE_LENGTH: Final = 64


@cache
def can_pack_int8() -> bool:
    """Whether torch's operators, which are not of its stable interface, are there and exact."""
    largest = torch.full((2, _PROBE_LENGTH), int(LARGEST), dtype=torch.int8)
    try:
        product = _packed_product(largest[:1], _pack(largest), torch.ones(2))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return product.tolist() == [[_PROBE_LENGTH * LARGEST**2] * 2]


class Int8Linear(nn.Module):
    """`x @ weight.T + bias` with both factors rounded to int8; `[..., in]` to `[..., out]`.

    Where the operators are missing or inexact, the product is taken in fp32. The result is the same
    and takes longer than plain layers do.
    What it keeps are copies: weight and bias may be views of a mapped file.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packs = can_pack_int8()
        quantised, scales = quantise_rows(weight.detach().float())
        self._weight = _pack(quantised) if self.packs else quantised
        self._scales = scales[:, 0]
        self._bias = None if bias is None else bias.detach().to(torch.float32, copy=True)

    @property
    def nbytes(self) -> int:
        """Bytes of the weight, its scales and the bias."""
        bias = 0 if self._bias is None else self._bias.nbytes
        return self.in_features * self.out_features + self._scales.nbytes + bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Round the rows to int8, multiply, and return in the dtype of `inputs`."""
        rows, scales = quantise_rows(inputs.float().reshape(-1, self.in_features))
        multiply = _packed_product if self.packs else _plain_product
        product = multiply(rows, self._weight, self._scales).mul_(scales)
        if self._bias is not None:
            product += self._bias
        return product.view(*inputs.shape[:-1], self.out_features).to(inputs.dtype)


def _pack(weight: torch.Tensor) -> torch.Tensor:
    pack = torch.ops.onednn.qlinear_prepack
    return cast(torch.Tensor, pack(weight, [_TYPICAL_ROWS, weight.shape[1]]))


def _packed_product(rows: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """`[rows, out]` in fp32: the integer products, times the scales of the weight's channels."""
    run = torch.ops.onednn.qlinear_pointwise
    shifted = rows.view(torch.uint8) ^ _MIDDLE  # of an int8's bits: plus 128
    symmetric = torch.zeros(1, dtype=torch.int64)
    # One scale for all rows is all that the operator takes, so theirs are applied afterwards.
    output: tuple[object, ...] = (1.0, 0, torch.float32, "none", [], "")
    product = run(shifted, 1.0, _MIDDLE, weight, scales, symmetric, None, *output)
    return cast(torch.Tensor, product)


def _plain_product(rows: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The same in fp32, in which whole numbers are exact up to 2^24: 1040 of the largest products.

    `_int_mm` would be faster, but saturates as oneDNN's other products do without VNNI.
    """
    return (rows.float() @ weight.t().float()).mul_(scales)
