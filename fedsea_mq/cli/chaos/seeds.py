"""Many seeds, in one process or several."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Final

from fedsea_mq.cli.chaos.simulated import Outcome, simulate

# Seeds that a process takes at a time; between them, it sweeps up.
_CHUNK: Final = 20


def simulate_all(seeds: Sequence[int], jobs: int) -> Iterator[Outcome]:
    """The outcome of each seed, in order, from so many processes."""
    chunks = [seeds[at : at + _CHUNK] for at in range(0, len(seeds), _CHUNK)]
    if jobs == 1:
        for chunk in chunks:
            yield from _simulate_some(chunk)
        return
    spawned = multiprocessing.get_context("spawn")
    # Ctrl-C is for the command, which then lets go of what its processes have not begun.
    quiet = (signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(jobs, spawned, initializer=signal.signal, initargs=quiet)
    try:
        for outcomes in pool.map(_simulate_some, chunks):
            yield from outcomes
    finally:
        pool.shutdown(cancel_futures=True)


def _simulate_some(seeds: Sequence[int]) -> list[Outcome]:
    with _at_full_speed():
        return [simulate(seed) for seed in seeds]


@contextmanager
def _at_full_speed() -> Iterator[None]:
    """Without logs that nobody reads, and without looking for garbage in the middle."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()
        logging.disable(before)
