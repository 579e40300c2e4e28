"""Nearest neighbour: every position by itself, against what each token alone makes of the head."""

from __future__ import annotations

from typing import ClassVar

from fedsea_mq.privacy.attacks.attack import Knowledge, Known, Seen


class NearestNeighbour:
    """The token whose state, out of context, is nearest."""

    name: ClassVar[str] = "nearest neighbour"
    knowledge: ClassVar[Knowledge] = Knowledge.WEIGHTS

    def fit(self, known: Known) -> None:
        """Nothing is learnt."""
        self._table = known.table

    def recover(self, seen: Seen) -> list[int]:
        """See `Attack.recover`."""
        rows = enumerate(seen.received)
        return [int(self._table.distances(row, position).argmin()) for position, row in rows]
