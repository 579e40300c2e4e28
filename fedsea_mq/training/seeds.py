"""Random numbers that follow from a seed and a count: to resume, no generator's state is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derived_seed(*words: object) -> int:
    """A seed of 63 bits for the use that the words name."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


class DropoutStream:
    """Dropout of one part: pass number `draws` is seeded by that number alone.

    torch's dropout draws from the process's generator. While a pass runs it is seeded, and then put
    back as it was, so no other thread may draw from it meanwhile.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.draws = 0
        self._seed = seed
        self._devices = [device] if device.type == "cuda" else []

    @contextmanager
    def next_pass(self) -> Iterator[None]:
        """Run a forward pass inside."""
        seed = derived_seed(self._seed, self.draws)
        with torch.random.fork_rng(devices=self._devices):
            # Not torch.manual_seed: without a GPU it formats a stack trace in every call.
            torch.default_generator.manual_seed(seed)
            for device in self._devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            self.draws += 1
            yield
