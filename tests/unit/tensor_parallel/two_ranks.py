"""Both ranks of a trunk in one process, over real collectives: rank 1 is a thread."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fedsea_mq.errors import RankLost
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.held_adapters import hold_adapters, open_adapters
from fedsea_mq.model.kv_cache import KVCache
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Cut
from fedsea_mq.model.parts import BlockRun, load_trunk
from fedsea_mq.model.tensor_shard import TensorShard
from fedsea_mq.tensor_parallel.rank_group import RankGroup
from fedsea_mq.tensor_parallel.rendezvous import Introduction, Listener, find, gather, introduce
from fedsea_mq.tensor_parallel.shared_run import LeadingRun, follow

PATIENCE_S = 10.0
SAME = Introduction("the same", 0)
NOTHING: Mapping[str, Path] = {}


@dataclass
class Other:
    """Rank 1."""

    share: BlockRun
    group: RankGroup
    caches: list[weakref.ref[KVCache]] = field(default_factory=list)
    ended: list[RankLost | None] = field(default_factory=list)

    @property
    def caches_held(self) -> int:
        return sum(made() is not None for made in self.caches)

    def follow(self, hidden: int, adapters: list[str]) -> None:
        make = self.share.new_cache

        def noted(max_positions: int) -> KVCache:
            cache = make(max_positions)
            self.caches.append(weakref.ref(cache))
            return cache

        self.share.new_cache = noted  # type: ignore[method-assign]
        try:
            follow(self.share, self.group, hidden, adapters)
            self.ended.append(None)
        except RankLost as lost:
            self.ended.append(lost)
        finally:
            self.group.close()


def groups() -> tuple[RankGroup, RankGroup]:
    """Connected, as two processes would connect."""
    listener, met = Listener(), []
    store = listener.store()
    lead, other = TensorShard(0, 2), TensorShard(1, 2)

    def come() -> None:
        found, address = find(listener.endpoint)
        introduce(found, other, SAME)
        met.append(RankGroup.connect(found, other, address, "cpu", PATIENCE_S))

    thread = threading.Thread(target=come)
    thread.start()
    gather(store, lead, SAME)
    group = RankGroup.connect(store, lead, listener.address, "cpu", PATIENCE_S)
    thread.join()
    return group, met[0]


@contextmanager
def two_ranks(
    model: Path | str, cut: Cut, numerics: Numerics, adapters: Mapping[str, Path] = NOTHING
) -> Iterator[tuple[LeadingRun, Other]]:
    """Rank 0's run and rank 1, which follows until this is left."""
    checkpoint = Checkpoint.open(str(model))
    opened = open_adapters(adapters, checkpoint.blocks)
    shares = []
    for rank in range(2):
        shard = TensorShard(rank, 2)
        share = load_trunk(checkpoint, cut, numerics, shard=shard)
        hold_adapters(share, opened, shard)
        shares.append(share)
    names, (first, second) = list(opened), groups()
    other = Other(shares[1], second)
    thread = threading.Thread(target=other.follow, args=(checkpoint.hidden, names))
    thread.start()
    leading = LeadingRun(shares[0], first, names)
    try:
        yield leading, other
    finally:
        leading.dismiss()
        thread.join()
