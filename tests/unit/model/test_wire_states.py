"""Hidden states over the wire: exact where the dtype is, bounded where it is not."""

from __future__ import annotations

import math

import pytest
import torch

from fedsea_mq.errors import MalformedFrame
from fedsea_mq.model.wire_states import (
    decode_states,
    encode_states,
)
from fedsea_mq.protocol.payload import PayloadSpec, WireDtype

HIDDEN = 32
STATES = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(1)) * 3


def there_and_back(states: torch.Tensor, dtype: WireDtype) -> torch.Tensor:
    spec = PayloadSpec(dtype, states.shape[1])
    return decode_states(encode_states(states, dtype), states.shape[0], spec, torch.float32)


@pytest.mark.parametrize("dtype", list(WireDtype))
def test_the_parts_are_what_the_contract_says(dtype: WireDtype) -> None:
    parts = encode_states(STATES, dtype)
    assert tuple(len(part) for part in parts) == PayloadSpec(dtype, HIDDEN).part_sizes(5)


def test_fp32_is_exact() -> None:
    assert torch.equal(there_and_back(STATES, WireDtype.FP32), STATES)


@pytest.mark.parametrize(
    ("dtype", "own"), [(WireDtype.FP16, torch.float16), (WireDtype.BF16, torch.bfloat16)]
)
def test_half_precision_is_exact_for_states_of_that_dtype(
    dtype: WireDtype, own: torch.dtype
) -> None:
    states = STATES.to(own)
    assert torch.equal(there_and_back(states, dtype), states.float())


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_int8_errs_by_half_a_step_of_each_positions_own_scale(size: float) -> None:
    states = STATES * torch.tensor([1.0, 10.0, 0.1, 1.0, 5.0])[:, None] * size
    step = states.abs().amax(dim=1, keepdim=True) / 127
    error = (there_and_back(states, WireDtype.INT8) - states).abs()
    assert (error <= 0.5001 * step).all()


def test_int8_of_nothing_is_nothing() -> None:
    assert torch.equal(there_and_back(torch.zeros(2, HIDDEN), WireDtype.INT8), torch.zeros(2, 32))


def test_fp16_saturates_instead_of_sending_infinities() -> None:
    states = torch.tensor([[1e6, -1e6, math.inf, -math.inf, 65504.0, 1.0]])
    got = there_and_back(states, WireDtype.FP16)
    assert got.tolist() == [[65504.0, -65504.0, 65504.0, -65504.0, 65504.0, 1.0]]


@pytest.mark.parametrize("dtype", list(WireDtype))
def test_no_positions_are_no_parts(dtype: WireDtype) -> None:
    assert encode_states(torch.empty(0, HIDDEN), dtype) == []
    assert there_and_back(torch.empty(0, HIDDEN), dtype).shape == (0, HIDDEN)


@pytest.mark.parametrize("dtype", list(WireDtype))
def test_given_parts_of_another_size_then_they_are_refused(dtype: WireDtype) -> None:
    parts = encode_states(STATES, dtype)
    with pytest.raises(MalformedFrame):
        decode_states(parts, 6, PayloadSpec(dtype, HIDDEN), torch.float32)


def test_what_is_decoded_can_be_written_to_and_leaves_the_frame_alone() -> None:
    parts = encode_states(STATES, WireDtype.FP32)
    states = decode_states(parts, 5, PayloadSpec(WireDtype.FP32, HIDDEN), torch.float32)
    before = parts[0]
    states.zero_()
    assert parts[0] == before != bytes(len(before))


def test_rows_that_are_not_contiguous_are_sent_in_order() -> None:
    assert torch.equal(there_and_back(STATES[::2], WireDtype.FP32), STATES[::2])
