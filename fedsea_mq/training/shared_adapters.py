"""The adapters that all clients of a run share, and how a round moves them. All on one thread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from fedsea_mq.errors import OutOfTurn, UpdateRefused
from fedsea_mq.model.lora import Adapter
from fedsea_mq.protocol.training_messages import ATTEMPT_BYTES
from fedsea_mq.training.adapter_layout import AdapterLayout
from fedsea_mq.training.averaging import WeightedMean, clip_update, update_norm
from fedsea_mq.training.secure_aggregation.server import SecureMean
from fedsea_mq.training.server_optimizers import Moments, ServerOptimizer

# A client clips to the same norm, in fp32: what is off by rounding only is not reported.
_ROUNDING: Final = 1e-5


@dataclass(frozen=True, slots=True)
class ClippedUpdate:
    """An update of a norm of at most the agreed one; `norm` is the one that it came with."""

    update: dict[str, torch.Tensor]
    norm: float
    clipped: bool


@dataclass(frozen=True, slots=True)
class Shared:
    """The shared adapters before a round, fp32, and the server optimiser's moments, fp64.

    `attempt` is the id of the one that they came out of; zeros before the first round.
    """

    adapters: Adapter
    moments: Moments
    attempt: bytes = bytes(ATTEMPT_BYTES)


class SharedAdapters:
    """Sums up an attempt's updates, makes the next adapters of them, and takes these if told to."""

    def __init__(
        self,
        layout: AdapterLayout,
        optimizer: ServerOptimizer,
        max_norm: float,
        begin: Shared,
    ) -> None:
        """Raises `AdapterError` if the adapters are not of this layout."""
        self.now = begin
        self._layout = layout
        self._optimizer = optimizer
        self._max_norm = max_norm
        self._vector = _bytes_of(layout, begin.adapters)
        self._sums: Mapping[bytes, WeightedMean] = {}
        self._next: Mapping[bytes, Shared] = {}

    @property
    def vector(self) -> bytes:
        """The shared adapters as they travel: fp32, in the order of the layout."""
        return self._vector

    def clipped(self, payload: Sequence[bytes]) -> ClippedUpdate:
        """An update off the wire, clipped.

        Raises:
            UpdateRefused: not as many numbers as the layout has, or not finite ones.
        """
        data = b"".join(payload)
        if len(data) != 4 * self._layout.elements:
            raise UpdateRefused(f"{len(data)} bytes, expected {4 * self._layout.elements}")
        update = self._layout.unflatten(np.frombuffer(data, "<f4"))
        norm = update_norm(update)
        if not math.isfinite(norm):
            raise UpdateRefused("the update is not all finite numbers")
        within, _ = clip_update(update, self._max_norm)
        return ClippedUpdate(within, norm, norm > self._max_norm * (1 + _ROUNDING))

    def add(self, attempt: bytes, update: ClippedUpdate, weight: int) -> None:
        """Count an update in this attempt's sum; sums of other attempts are let go of.

        Raises:
            UpdateRefused: a weight that is none.
        """
        if attempt not in self._sums:
            self._sums = {attempt: WeightedMean(self._layout)}
        self._sums[attempt].add(update.update, weight)

    def average(self, attempt: bytes) -> bytes:
        """The next adapters, by this attempt's mean, as they travel; see `take`.

        Raises:
            OutOfTurn: nothing was added in this attempt.
        """
        if attempt not in self._sums:
            raise OutOfTurn("no sum of this attempt")
        return self._step(attempt, self._sums[attempt].mean())

    def average_of(self, attempt: bytes, mean: SecureMean) -> bytes:
        """The same by a mean that was made in secret."""
        return self._step(attempt, mean.update)

    def _step(self, attempt: bytes, mean: Adapter) -> bytes:
        adapters, moments = self._optimizer.step(self.now.adapters, mean, self.now.moments)
        stepped = Shared(adapters, moments, attempt)
        self._next = {attempt: stepped}
        return _bytes_of(self._layout, stepped.adapters)

    def take(self, attempt: bytes) -> None:
        """Go on from the adapters that `average` made. Raises `OutOfTurn` if it did not."""
        if attempt not in self._next:
            raise OutOfTurn("no adapters of this attempt")
        self.now = self._next[attempt]
        self._vector = _bytes_of(self._layout, self.now.adapters)
        self._sums, self._next = {}, {}


def _bytes_of(layout: AdapterLayout, adapters: Adapter) -> bytes:
    return layout.flatten(adapters).astype("<f4", copy=False).tobytes()
