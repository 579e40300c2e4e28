"""The keys and values of one session, for one run of blocks.

One contiguous buffer a session, reserved for all the positions it may hold and read in place:
gathering slots or pages into a padded batch was measured 5 x slower on CPU. There, memory that no
position has reached yet is virtual only, and paged in as the session grows; on a GPU it is taken at
once.

In int8 each key and each value of a head has a scale of its own (`int8_rows`): it is written once,
when its position is, and nothing that comes later changes how it was rounded.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from typing import Final

import torch

from fedsea_mq.model.int8_rows import quantise_rows

_CACHE_LINE_BYTES: Final = 64


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
        return 2 * len(self.blocks) * self.kv_heads * (self._row_bytes + self._scale_bytes)

    @property
    def _row_bytes(self) -> int:
        return self.head_dim * self.dtype.itemsize

    @property
    def _scale_bytes(self) -> int:
        return torch.float32.itemsize if self.dtype is torch.int8 else 0

    def layout(self, max_positions: int) -> tuple[int, int]:
        """Bytes from a block's keys, or its values, to their scales, and to the end of both."""
        rows = self.kv_heads * max_positions
        to_scales = rows * self._row_bytes
        to_scales += -to_scales % _CACHE_LINE_BYTES
        return to_scales, max(to_scales + rows * self._scale_bytes, _CACHE_LINE_BYTES)


class KVCache:
    """Keys and values of one session: `[2, blocks, kv_heads, max_positions, head_dim]`.

    In int8 the scales, `[2, blocks, kv_heads, max_positions]` in fp32, follow each block's rows.
    """

    def __init__(self, shape: KVShape, max_positions: int) -> None:
        self.first_block = shape.blocks.start
        self.max_positions = max_positions
        self.dtype = shape.dtype
        to_scales, size = shape.layout(max_positions)
        sizes = (2, len(shape.blocks), size)
        store = (
            _mapped(sizes)
            if shape.device == "cpu"
            else torch.empty(sizes, dtype=torch.uint8, device=shape.device)
        )
        rows = (*sizes[:2], shape.kv_heads, max_positions)
        row_bytes = math.prod(rows[2:]) * shape.head_dim * shape.dtype.itemsize
        self._rows = store[..., :row_bytes].view(shape.dtype).view(*rows, shape.head_dim)
        self._scales = (
            store[..., to_scales:].view(torch.float32).view(*rows, 1)
            if shape.dtype is torch.int8
            else None
        )
        to_values, to_block = store.stride()[:2]
        # Where compiled code finds things: the address of the first block's keys, the bytes from a
        # block to the next, from keys to values and from either to its scales, and the positions
        # of a head.
        self.location = (store.data_ptr(), to_block, to_values, to_scales, max_positions)

    def write(self, block: int, start: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store `[kv_heads, count, head_dim]` keys and values of `block` from `start` on."""
        at = slice(start, start + key.shape[1])
        for which, rows in enumerate((key, value)):
            stored = self._rows[which, block - self.first_block, :, at]
            if self._scales is None:
                stored.copy_(rows)
            else:
                quantised, scales = quantise_rows(rows.float())
                stored.copy_(quantised)
                self._scales[which, block - self.first_block, :, at] = scales

    def read(self, block: int, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`[kv_heads, stop - start, head_dim]` keys and values of `block`.

        Views, or fp32 copies of what was stored in int8.
        """
        at = (slice(None), block - self.first_block, slice(None), slice(start, stop))
        keys_and_values = self._rows[at]
        if self._scales is not None:
            keys_and_values = keys_and_values.float().mul_(self._scales[at])
        return keys_and_values[0], keys_and_values[1]

    def copy_from(self, other: KVCache, stop: int) -> None:
        """Hold what `other`, of the same shape, holds of the positions before `stop`."""
        self._rows[..., :stop, :].copy_(other._rows[..., :stop, :])
        if self._scales is not None and other._scales is not None:
            self._scales[..., :stop, :].copy_(other._scales[..., :stop, :])


def _mapped(sizes: tuple[int, ...]) -> torch.Tensor:
    """Bytes of its own from the system, which has them back when the session ends.

    From the heap, a thousand sessions of all lengths that come and go left a trunk with three times
    the memory that they used.
    """
    count = math.prod(sizes)
    if not count:
        return torch.empty(sizes, dtype=torch.uint8)
    return torch.frombuffer(mmap.mmap(-1, count), dtype=torch.uint8).view(sizes)
