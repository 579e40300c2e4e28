"""Bodies are compressed where it wins, and never inflate beyond what the reader allows."""

from __future__ import annotations

import os
import struct
import tracemalloc

import lz4.block
import pytest

from fedsea_mq.errors import LimitExceeded, MalformedFrame
from fedsea_mq.protocol.compression import pack, unpack

LIMIT = 1 << 20


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 10_000, LIMIT])
@pytest.mark.parametrize("fill", [bytes, os.urandom])
def test_what_is_packed_comes_back(size: int, fill: type[bytes]) -> None:
    data = fill(size)
    assert unpack(pack(data), LIMIT) == data


def test_given_repetitive_data_then_it_shrinks_and_given_noise_then_one_tag_is_all_it_costs() -> (
    None
):
    noise = os.urandom(4096)
    assert len(pack(bytes(4096))) < 100
    assert len(pack(noise)) == len(noise) + 1
    assert len(pack(bytes(100))) == 101  # too small to try


def test_given_a_raw_part_beyond_the_limit_then_it_is_refused() -> None:
    assert unpack(pack(os.urandom(100)), 100)
    with pytest.raises(LimitExceeded, match="101 bytes, at most 100"):
        unpack(pack(os.urandom(101)), 100)


@pytest.mark.parametrize("declared", [LIMIT + 1, 1 << 28, 2**32 - 1])
def test_given_a_bomb_then_it_is_refused_before_anything_is_allocated(declared: int) -> None:
    block = lz4.block.compress(bytes(LIMIT), store_size=False)
    bomb = b"\x01" + struct.pack("<I", declared) + block
    tracemalloc.start()
    try:
        with pytest.raises(LimitExceeded, match=f"declares {declared} bytes"):
            unpack(bomb, LIMIT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(bomb) + 16_384


@pytest.mark.parametrize("declared", [0, 1, 999, 1001, LIMIT])
def test_given_a_block_that_holds_another_size_then_it_is_malformed(declared: int) -> None:
    block = lz4.block.compress(bytes(1000), store_size=False)
    with pytest.raises(MalformedFrame):
        unpack(b"\x01" + struct.pack("<I", declared) + block, LIMIT)


@pytest.mark.parametrize("part", [b"", b"\x02", b"\xffabc", b"\x01", b"\x01\x00\x00\x00"])
def test_given_an_unknown_tag_or_no_size_then_the_part_is_malformed(part: bytes) -> None:
    with pytest.raises(MalformedFrame):
        unpack(part, LIMIT)
