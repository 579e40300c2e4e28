"""Keys and values come back from where they were written."""

from __future__ import annotations

import random

import psutil
import pytest
import torch

from fedsea_mq.model.kv_cache import KVCache, KVShape

INT8 = KVShape(range(2, 4), 2, 8, torch.int8, "cpu")
SHAPE = KVShape(range(2, 4), 2, 8, torch.float32, "cpu")


def fill(value: float, count: int) -> torch.Tensor:
    return torch.full((2, count, 8), float(value))


def test_a_position_costs_keys_and_values_of_every_block_of_the_run() -> None:
    assert SHAPE.bytes_per_position == 2 * 2 * 2 * 8 * 4
    assert INT8.bytes_per_position == 2 * 2 * 2 * (8 + 4)
    assert KVShape(range(0), 2, 8, torch.bfloat16, "cpu").bytes_per_position == 0


@pytest.mark.parametrize("shape", [SHAPE, INT8], ids=["fp32", "int8"])
def test_blocks_and_positions_stay_apart(shape: KVShape) -> None:
    cache = KVCache(shape, 10)
    for block in (2, 3):
        cache.write(block, 0, fill(block, 4), fill(-block, 4))
        cache.write(block, 4, fill(block + 10, 1), fill(-block - 10, 1))
    for block in (2, 3):
        keys, values = cache.read(block, 1, 5)
        assert keys.shape == values.shape == (2, 4, 8)
        torch.testing.assert_close(keys[:, :3], fill(block, 3))
        torch.testing.assert_close(keys[:, 3:], fill(block + 10, 1))
        assert torch.equal(values, -keys)


@pytest.mark.parametrize("shape", [SHAPE, INT8], ids=["fp32", "int8"])
def test_what_is_written_again_replaces_what_was_there(shape: KVShape) -> None:
    cache = KVCache(shape, 10)
    cache.write(2, 0, fill(1, 6), fill(1, 6))
    cache.write(2, 3, fill(2, 2), fill(2, 2))
    keys, _ = cache.read(2, 0, 6)
    assert keys[0, :, 0].tolist() == pytest.approx([1, 1, 1, 2, 2, 1])


def test_reading_copies_nothing() -> None:
    cache = KVCache(SHAPE, 10)
    keys, _ = cache.read(2, 0, 6)
    cache.write(2, 0, fill(7, 6), fill(7, 6))
    assert torch.equal(keys, fill(7, 6))


def test_in_int8_each_position_of_each_head_has_its_own_scale() -> None:
    cache = KVCache(INT8, 9)
    key = torch.randn(2, 9, 8) * torch.logspace(-6, 6, 18).view(2, 9, 1)
    cache.write(3, 0, key, -key)
    keys, values = cache.read(3, 0, 9)
    assert keys.dtype == torch.float32
    off = (keys - key).abs() / key.abs().amax(-1, keepdim=True)
    assert float(off.max()) <= 0.5001 / 127
    assert torch.equal(values, -keys)


def test_the_memory_of_caches_that_are_gone_is_given_back() -> None:
    """Of sessions of all lengths, in any order: nothing stays behind in a fragmented heap."""
    rng = random.Random(0)
    shape = KVShape(range(8), 8, 64, torch.bfloat16, "cpu")
    states = torch.zeros(8, 96, 64)
    held: list[KVCache] = []
    process = psutil.Process()
    before = process.memory_info().rss
    for _ in range(600):
        positions = rng.randint(24, 96)
        cache = KVCache(shape, positions)
        for block in shape.blocks:
            cache.write(block, 0, states[:, :positions], states[:, :positions])
        held.append(cache)
        if len(held) > 60:
            del held[rng.randrange(len(held))]
    held.clear()
    del cache
    assert process.memory_info().rss - before < 8 << 20
