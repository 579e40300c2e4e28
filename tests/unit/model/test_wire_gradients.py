"""Gradients on the wire: small ones survive narrow dtypes, what is not finite does not pass."""

from __future__ import annotations

import pytest
import torch

from fedsea_mq.errors import MalformedFrame, TrainingDiverged
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


def test_what_is_not_finite_is_refused_on_both_sides() -> None:
    spec = PayloadSpec(WireDtype.FP32, 2)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(TrainingDiverged):
            encode_gradient(torch.tensor([[0.0, bad]]), WireDtype.FP16)
        parts = encode_states(torch.tensor([[0.0, bad]]), WireDtype.FP32)
        with pytest.raises(MalformedFrame):
            decode_gradient(parts, 0, 1, spec)
    # An exponent that makes it so, and parts of another size.
    parts = encode_states(torch.ones(1, 2), WireDtype.FP32)
    with pytest.raises(MalformedFrame):
        decode_gradient(parts, 256, 1, spec)
    with pytest.raises(MalformedFrame):
        decode_gradient(parts, 0, 2, spec)
