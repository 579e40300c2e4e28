"""Which nodes lead a session through all of a trunk's blocks, one stage after another. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from fedsea_mq.protocol.stage import Stage


def entries(stages: Sequence[Stage | None], block: int | None) -> list[int]:
    """Which of the stages, by index, take a session from `block` on and lead it to the end.

    All are of one trunk; one without a stage serves all of it. `block` None is the trunk's first.
    """
    leads = _leads_to_end(stages)
    return [n for n, stage in enumerate(stages) if leads[n] and _entry(stage) == block]


def comes_by(stage: Stage | None, block: int | None) -> bool:
    """Whether a session may come by such a stage on its way from `block` on; both as `entries`."""
    return block is None or (stage is not None and stage.first >= block)


def _leads_to_end(stages: Sequence[Stage | None]) -> list[bool]:
    """Of each, whether blocks after its own are served, too, up to the last."""
    # The last blocks first: what comes after a stage is known by then.
    covered: set[int] = set()
    for stage in sorted(filter(None, stages), key=lambda one: one.first, reverse=True):
        if stage.is_last or stage.stop in covered:
            covered.add(stage.first)
    return [stage is None or stage.is_last or stage.stop in covered for stage in stages]


def _entry(stage: Stage | None) -> int | None:
    return None if stage is None else stage.entry
