"""What the raw tensor parts of a frame must weigh: checked before anything is allocated.

Hidden states travel as one buffer of `[positions, hidden]` in a wire dtype; int8 adds a second
part, one fp32 scale a position. No shape travels: the session's contract fixes `hidden` and the
dtype at open, the body gives the number of positions, and the sizes must follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from fedsea_mq.errors import MalformedFrame


class WireDtype(StrEnum):
    """Element type of hidden states on the wire."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"

    @property
    def itemsize(self) -> int:
        """Bytes an element."""
        return {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}[self.value]


_SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class PayloadSpec:
    """The contract of a session's tensor parts."""

    dtype: WireDtype
    hidden: int

    def part_sizes(self, positions: int) -> tuple[int, ...]:
        """Bytes of each raw part of `[positions, hidden]`; nothing for no positions."""
        if positions == 0:
            return ()
        data = positions * self.hidden * self.dtype.itemsize
        return (data, positions * _SCALE_BYTES) if self.dtype is WireDtype.INT8 else (data,)

    @property
    def bytes_per_position(self) -> int:
        """Payload bytes of one position: the floor of a decode step, each way."""
        return sum(self.part_sizes(1))

    def check(self, parts: Sequence[bytes], positions: int) -> None:
        """Refuse parts that are not exactly `[positions, hidden]` of the dtype.

        Raises:
            MalformedFrame: the number of parts or the size of one differs.
        """
        expected, came = self.part_sizes(positions), tuple(len(part) for part in parts)
        if came != expected:
            raise MalformedFrame(
                f"payload parts of {list(came[:4])} bytes for {positions} positions, "
                f"expected {list(expected)}"
            )
