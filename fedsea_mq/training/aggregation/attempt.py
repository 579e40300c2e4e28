"""One attempt at a round, as the aggregator sees it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fedsea_mq.protocol.training_messages import BeginRound, EndRound
from fedsea_mq.training.aggregation.secure_stages import SecureStages
from fedsea_mq.training.round_plan import RoundId


@dataclass(frozen=True, slots=True)
class Said:
    """What counts of a member: its samples, and its mean loss."""

    samples: int
    loss: float


@dataclass(slots=True)
class Attempt:
    """`id` is drawn for it. It is `begun` once the trunk says so; `tasked` are who was told so."""

    id: bytes
    round: RoundId
    members: tuple[str, ...]
    local_steps: int
    begun: bool = False
    tasked: set[str] = field(default_factory=set)
    checking: set[str] = field(default_factory=set)
    updates: dict[str, Said] = field(default_factory=dict)
    secure: SecureStages | None = None
    # Once there is a mean: the next adapters, and who is in it.
    result: bytes = b""
    counted: tuple[str, ...] = ()

    @property
    def begin(self) -> BeginRound:
        """What the trunk is told at its beginning."""
        return BeginRound(self.round.number, self.id, self.local_steps, list(self.members))

    @property
    def end(self) -> EndRound:
        """What the trunk is told at its end."""
        return EndRound(self.round.number, self.id, list(self.counted))

    @property
    def loss(self) -> float:
        """The mean of the updates' losses, weighted by samples."""
        said = self.updates.values()
        samples = sum(one.samples for one in said)
        return math.fsum(one.samples * one.loss for one in said) / samples
