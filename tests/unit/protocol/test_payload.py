"""The sizes of tensor parts follow from the contract; anything else is refused."""

from __future__ import annotations

import pytest

from fedsea_mq.errors import MalformedFrame
from fedsea_mq.protocol.payload import PayloadSpec, WireDtype

HIDDEN = 64
SIZES = {WireDtype.FP32: 256, WireDtype.FP16: 128, WireDtype.BF16: 128, WireDtype.INT8: 68}


@pytest.mark.parametrize("dtype", list(WireDtype))
def test_a_position_weighs_what_its_dtype_says(dtype: WireDtype) -> None:
    assert PayloadSpec(dtype, HIDDEN).bytes_per_position == SIZES[dtype]


def test_int8_carries_one_fp32_scale_a_position() -> None:
    assert PayloadSpec(WireDtype.INT8, HIDDEN).part_sizes(3) == (3 * 64, 3 * 4)


@pytest.mark.parametrize("dtype", list(WireDtype))
def test_no_positions_means_no_parts(dtype: WireDtype) -> None:
    spec = PayloadSpec(dtype, HIDDEN)
    assert spec.part_sizes(0) == ()
    with pytest.raises(MalformedFrame):
        spec.check([b""], 0)


@pytest.mark.parametrize("dtype", list(WireDtype))
def test_given_any_other_size_or_number_of_parts_then_the_payload_is_malformed(
    dtype: WireDtype,
) -> None:
    spec = PayloadSpec(dtype, HIDDEN)
    right = [bytes(size) for size in spec.part_sizes(2)]
    assert [len(part) for part in right] == list(spec.part_sizes(2))
    spec.check(right, 2)
    wrong = [
        [],
        [*right, b""],
        right[:-1],
        [*right[:-1], right[-1] + b"x"],
        [right[0][:-1], *right[1:]],
    ]
    for parts in wrong:
        with pytest.raises(MalformedFrame, match="for 2 positions, expected"):
            spec.check(parts, 2)
    with pytest.raises(MalformedFrame):
        spec.check(right, 3)
