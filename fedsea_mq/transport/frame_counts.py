"""Running totals of what one party's sockets sent, received and refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from fedsea_mq.errors import FedSeaError, code_of
from fedsea_mq.protocol.frames import wire_bytes
from fedsea_mq.telemetry import measures
from fedsea_mq.telemetry.measures import Reading


class Direction(StrEnum):
    """Which way frames go: up from clients to nodes, down back."""

    UP = "up"
    DOWN = "down"


@dataclass(slots=True)
class FrameCounts:
    """Each frame counts by itself, with ZMTP's framing, also where several travel as one message.

    `sends` is the direction of what the party sends.
    """

    sends: Direction
    sent: int = 0
    sent_bytes: int = 0
    received: int = 0
    received_bytes: int = 0
    # By the code of the error.
    refused: Counter[str] = field(default_factory=Counter)

    def went(self, parts: Sequence[bytes]) -> None:
        """A frame was sent."""
        self.sent += 1
        self.sent_bytes += wire_bytes(parts)

    def came(self, parts: Sequence[bytes]) -> None:
        """A frame was received."""
        self.received += 1
        self.received_bytes += wire_bytes(parts)

    def refuse(self, error: FedSeaError) -> None:
        """What was received is refused."""
        self.refused[code_of(error)] += 1

    def readings(self) -> Iterable[Reading]:
        """Frames and bytes each way; what was refused is read by `refused_readings`."""
        back = Direction.DOWN if self.sends is Direction.UP else Direction.UP
        yield measures.FRAMES.of(self.sent, self.sends)
        yield measures.FRAMES.of(self.received, back)
        yield measures.BYTES.of(self.sent_bytes, self.sends)
        yield measures.BYTES.of(self.received_bytes, back)


def refused_readings(refused: Mapping[str, int]) -> Iterable[Reading]:
    """The refused frames, by code."""
    return [measures.REFUSED_FRAMES.of(count, code) for code, count in refused.items()]
