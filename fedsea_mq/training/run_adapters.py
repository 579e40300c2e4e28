"""Which set the adapters of a run are of, so that its parts fit each other wherever they lie."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from fedsea_mq.model.adapter_set import AdapterSet
from fedsea_mq.model.partition import Cut, Part


@dataclass(frozen=True, slots=True)
class RunAdapters:
    """The adapters that a run makes, for these decoder blocks over all its parts.

    No party sees all parts, so none can digest their content. All of them know the last attempt
    that counted, whose random id names one training of these adapters and no other.
    """

    run: str
    blocks: frozenset[int]

    @classmethod
    def of(cls, run: str, cut: Cut, total: int, parts: Iterable[Part]) -> RunAdapters:
        """Of a model of `total` blocks, `parts` of which have an adapter."""
        return cls(run, frozenset(block for part in parts for block in cut.blocks(part, total)))

    def after(self, attempt: bytes) -> AdapterSet:
        """As they are after the attempt with this id."""
        said = f"fedsea run\n{self.run}\n{attempt.hex()}\n"
        return AdapterSet(sha256(said.encode()).hexdigest(), self.blocks)
