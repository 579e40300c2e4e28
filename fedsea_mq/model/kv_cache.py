"""The keys and values of one session, for one run of blocks.

One contiguous buffer a session, reserved for all the positions it may hold and read in place:
gathering slots or pages into a padded batch was measured 5 x slower on CPU. There, memory that no
position has reached yet is virtual only, and paged in as the session grows; on a GPU it is taken at
once.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class KVShape:
    """What a run of blocks caches for one position; `dtype` is what it is stored in."""

    blocks: range
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: str

    @property
    def bytes_per_position(self) -> int:
        """Bytes of keys and values of one position over all blocks of the run."""
        return 2 * len(self.blocks) * self.kv_heads * self.head_dim * self.dtype.itemsize


class KVCache:
    """Keys and values of one session: `[2, blocks, kv_heads, max_positions, head_dim]`."""

    def __init__(self, shape: KVShape, max_positions: int) -> None:
        self.first_block = shape.blocks.start
        self.dtype = shape.dtype
        sizes = (2, len(shape.blocks), shape.kv_heads, max_positions, shape.head_dim)
        self._store = (
            _mapped(sizes, shape.dtype)
            if shape.device == "cpu"
            else torch.empty(sizes, dtype=shape.dtype, device=shape.device)
        )
        to_values, to_block = (n * self._store.itemsize for n in self._store.stride()[:2])
        # Where compiled code finds things: the address of the first block's keys, the bytes from a
        # block to the next, those from keys to values, and the positions of a head.
        self.location = (self._store.data_ptr(), to_block, to_values, max_positions)

    def write(self, block: int, start: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store `[kv_heads, count, head_dim]` keys and values of `block` from `start` on."""
        stop = start + key.shape[1]
        self._store[0, block - self.first_block, :, start:stop] = key
        self._store[1, block - self.first_block, :, start:stop] = value

    def read(self, block: int, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views `[kv_heads, stop - start, head_dim]` of the keys and values of `block`."""
        layer = self._store[:, block - self.first_block, :, start:stop]
        return layer[0], layer[1]


def _mapped(sizes: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory of its own from the system, which has it back when the session ends.

    From the heap, a thousand sessions of all lengths that come and go left a trunk with three times
    the memory that they used.
    """
    elements = math.prod(sizes)
    if not elements:
        return torch.empty(sizes, dtype=dtype)
    buffer = mmap.mmap(-1, elements * dtype.itemsize)
    return torch.frombuffer(buffer, dtype=dtype).view(sizes)
