"""Weighted updates as integers modulo 2^64, so that sums are exact and masks hide them perfectly.

An element `u` of an update of weight `w` becomes `round(w * u * 2^scale_bits)`. Sums of these, for
up to `clients` updates within the range, stay below 2^63 in size, so nothing wraps around. The
weight itself is one more element, unscaled: its sum is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedsea_mq.errors import AdapterError, UpdateRefused


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """The range: up to `clients` updates, weights of 1 to `max_weight`, elements to `max_abs`."""

    clients: int
    max_weight: int
    max_abs: float

    @property
    def scale_bits(self) -> int:
        """The greatest scale for which a full sum is at most 2^62 before rounding."""
        return 62 - math.frexp(self.clients * self.max_weight * self.max_abs)[1]

    def error_bound(self, clients: int, weight: int) -> float:
        """How far an element of the mean of so many updates of that total weight can be off.

        Rounding costs half a unit of the scale for each update. Reading the sum as fp64 and
        dividing costs two roundings more, relative to the mean (`max_abs` at most).
        """
        return math.ldexp(clients / weight, -self.scale_bits - 1) + self.max_abs * 2.0**-52

    def encode(self, update: np.ndarray, weight: int) -> np.ndarray:
        """An fp32 update `[elements]` as uint64 `[elements + 1]`; the weight stands last.

        Raises:
            AdapterError: not fp32, not finite, or out of range. Clip the update's norm to
                `max_abs` to be sure that it is in range.
        """
        if type(weight) is not int or not 1 <= weight <= self.max_weight:
            raise AdapterError(f"weight is not an integer of 1 to {self.max_weight}")
        if update.dtype != np.float32 or update.ndim != 1:
            raise AdapterError(f"update of {update.dtype} {update.shape}, expected fp32 [n]")
        # NaN fails the comparison too.
        if not max(abs(update.min()), abs(update.max())) <= self.max_abs:
            raise AdapterError(f"update has elements beyond {self.max_abs}, or not finite")
        # Exact in fp64: 24 bits of fp32 times a weight of at most 2^29, times a power of two.
        scaled = update.astype(np.float64)
        scaled *= math.ldexp(weight, self.scale_bits)
        words = np.empty(len(update) + 1, np.uint64)
        words[:-1] = np.rint(scaled, out=scaled).astype(np.int64).view(np.uint64)
        words[-1] = weight
        return words

    def decode(self, total: np.ndarray, clients: int) -> tuple[np.ndarray, int]:
        """The weighted mean in fp64 `[elements]` and the total weight, of a sum of encodings.

        Raises:
            UpdateRefused: the weight is none that so many clients can have: the sum is not one of
                encodings, or a mask is left on it.
        """
        weight = int(total[-1])
        if not clients <= weight <= clients * self.max_weight:
            raise UpdateRefused(f"the sum's weight is none of {clients} clients")
        mean = total[:-1].view(np.int64).astype(np.float64)
        mean *= math.ldexp(1.0, -self.scale_bits)
        mean /= weight
        return mean, weight
