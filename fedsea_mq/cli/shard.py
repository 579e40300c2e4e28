"""`fedsea shard`: head, trunk and tail as folders of their own."""

from __future__ import annotations

from pathlib import Path

from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.partition import Cut
from fedsea_mq.model.shard import write_shards


def shard(model: str, head: int, tail: int, out: Path) -> dict[str, int]:
    """Write the shards; tensor bytes of each part."""
    sizes = write_shards(Checkpoint.open(model), Cut(head, tail), out)
    return {part.value: size for part, size in sizes.items()}
