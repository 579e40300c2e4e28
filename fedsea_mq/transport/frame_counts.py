"""Running totals of what one party's sockets sent, received and refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from fedsea_mq.errors import FedSeaError, code_of
from fedsea_mq.protocol.frames import wire_bytes
from fedsea_mq.telemetry import measures
from fedsea_mq.telemetry.measures import Reading

_NOTHING: Final[Mapping[str, int]] = {}


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

    def frames(self, direction: Direction) -> int:
        """Frames that went this way."""
        return self.sent if direction is self.sends else self.received

    def bytes(self, direction: Direction) -> int:
        """Bytes of these."""
        return self.sent_bytes if direction is self.sends else self.received_bytes


def frame_readings(
    *counts: FrameCounts, refused: Mapping[str, int] = _NOTHING
) -> Iterable[Reading]:
    """Frames and bytes of all these together; what was refused of them, and by others `refused`."""
    for direction in Direction:
        yield measures.FRAMES.of(sum(one.frames(direction) for one in counts), direction)
        yield measures.BYTES.of(sum(one.bytes(direction) for one in counts), direction)
    yield from refused_readings(sum((one.refused for one in counts), Counter(refused)))


def refused_readings(refused: Mapping[str, int]) -> Iterable[Reading]:
    """Refused frames, by code."""
    return [measures.REFUSED_FRAMES.of(count, code) for code, count in refused.items()]
