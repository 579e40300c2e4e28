"""Gradients on the wire: small ones survive narrow dtypes."""

from __future__ import annotations

import pytest
import torch

from fedsea_mq.errors import MalformedFrame
from fedsea_mq.model.wire_gradients import decode_gradient, encode_gradient
from fedsea_mq.model.wire_states import encode_states
from fedsea_mq.protocol.payload import PayloadSpec, WireDtype

ROUNDING = {
    WireDtype.FP32: 0.0,
    WireDtype.FP16: 2**-10,
    WireDtype.BF16: 2**-8,
    WireDtype.INT8: 2**-6,
}


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1.0, 1e9, 1e37])
@pytest.mark.parametrize("dtype", WireDtype)
def test_any_scale_comes_back(dtype: WireDtype, scale: float) -> None:
    gradient = scale * torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    exponent, parts = encode_gradient(gradient, dtype)
    back = decode_gradient(parts, exponent, 5, PayloadSpec(dtype, 16))
    assert float((back.double() - gradient).norm() / gradient.double().norm()) <= ROUNDING[dtype]


@pytest.mark.parametrize("dtype", WireDtype)
def test_nothing_comes_back_as_nothing(dtype: WireDtype) -> None:
    exponent, parts = encode_gradient(torch.zeros(3, 4), dtype)
    assert torch.equal(
        decode_gradient(parts, exponent, 3, PayloadSpec(dtype, 4)), torch.zeros(3, 4)
    )


def test_what_is_not_finite_comes_out_so_for_whoever_reads_it_to_refuse() -> None:
    for bad in (torch.nan, torch.inf):
        gradient = torch.tensor([[0.0, bad]])
        exponent, parts = encode_gradient(gradient, WireDtype.FP32)
        back = decode_gradient(parts, exponent, 1, PayloadSpec(WireDtype.FP32, 2))
        assert torch.equal(back.nan_to_num(7.0), gradient.nan_to_num(7.0))
    # An exponent that makes it so, and parts of another size.
    parts = encode_states(torch.ones(1, 2), WireDtype.FP32)
    assert not decode_gradient(parts, 256, 1, PayloadSpec(WireDtype.FP32, 2)).isfinite().any()
    with pytest.raises(MalformedFrame):
        decode_gradient(parts, 0, 2, PayloadSpec(WireDtype.FP32, 2))
