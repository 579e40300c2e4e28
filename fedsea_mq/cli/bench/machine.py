"""What this machine can do at most: the floors that figures are held against."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median
from typing import Final

import torch

_REPEATS = 5
# A machine that has other work than this.
BUSY_LOAD: Final = 0.5


def load_average() -> float:
    """Processes that ran or wanted to, over the last minute."""
    return os.getloadavg()[0]


def read_bytes_per_s() -> float:
    """Bytes a second that torch's threads read from memory: a sum over far more than the caches."""
    data = torch.ones(256 << 20, dtype=torch.float32)  # 1 GiB
    return data.nbytes / median_seconds(data.sum)


def gemm_flops_per_s() -> float:
    """bf16 multiply-adds (two operations each) a second, of a large product."""
    left, right = (torch.randn(2048, 2048).to(torch.bfloat16) for _ in range(2))
    return 2 * 2048**3 / median_seconds(lambda: left @ right)


def median_seconds(work: Callable[[], object], repeats: int = _REPEATS) -> float:
    """The median time of the work, after one run that is not counted."""
    work()
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return median(taken)
