"""A run of blocks of which each rank has a share: one leads, and the others do as it does.

Between two sums each rank computes by itself, over the caches of its own heads. The sums are made
where a module's outputs leave it, not in its last layer, so that what adapters add is in them.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch

from fedsea_mq.errors import AdapterError, RankLost
from fedsea_mq.model.attention import Span
from fedsea_mq.model.kv_cache import KVCache
from fedsea_mq.model.parts import BlockRun
from fedsea_mq.tensor_parallel.rank_group import RankGroup
from fedsea_mq.tensor_parallel.step_plan import (
    PlannedSpan,
    StepPlan,
    receive_plan,
    send_plan,
    send_stop,
)


class LeadingRun(BlockRun):
    """Rank 0's share, which has the others run theirs; to its caller, the whole blocks.

    `adapters` are the names of those held, in the order that all ranks have agreed on. A forward
    pass raises `RankLost` if not all ranks came through it; then none will again.
    """

    def __init__(self, share: BlockRun, group: RankGroup, adapters: Sequence[str] = ()) -> None:
        super().__init__(list(share.layers), share.rotary, share.kv_shape, share.dtype)
        self.adapters = share.adapters
        self._group = group
        self._caches = _CacheNumbers()
        self._places: dict[str | None, int] = {None: -1, **_numbered(adapters)}
        _sum_shares(self, group)

    def forward(self, hidden: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor:
        """See `BlockRun.forward`."""
        plan = StepPlan([self._planned(span) for span in spans], self._caches.take_freed())
        states = hidden.to(self.dtype).contiguous()
        with _all_or_none():
            send_plan(self._group, plan)
            self._group.broadcast_states(states)
            return super().forward(states, spans)

    def look_round(self) -> None:
        """See that all ranks are there, and have them free what is not used any more.

        Raises:
            RankLost: one is not.
        """
        send_plan(self._group, StepPlan([], self._caches.take_freed()))
        self._group.all_here()

    def dismiss(self) -> None:
        """Let the other ranks end, if they are there."""
        if not self._group.is_lost:
            send_stop(self._group)
        self._group.close()

    def _planned(self, span: Span) -> PlannedSpan:
        if span.adapter not in self._places:
            raise AdapterError("rows of an adapter that is not held")
        place = self._places[span.adapter]
        number = self._caches.number(span.cache)
        return PlannedSpan(number, span.cache.max_positions, span.start, span.count, place)


def follow(share: BlockRun, group: RankGroup, hidden: int, adapters: Sequence[str] = ()) -> None:
    """Run a share of blocks, `hidden` wide, as rank 0 says, until it says stop.

    Raises:
        RankLost: rank 0 or another is gone, or this one failed in a step.
    """
    _sum_shares(share, group)
    caches: dict[int, KVCache] = {}
    with torch.inference_mode(), _all_or_none():
        while (plan := receive_plan(group)) is not None:
            for number in plan.freed:
                caches.pop(number, None)
            if not plan.spans:
                group.all_here()
                continue
            states = torch.empty(plan.rows, hidden, dtype=share.dtype, device=share.kv_shape.device)
            group.broadcast_states(states)
            share(states, [_span(share, caches, planned, adapters) for planned in plan.spans])


def _span(
    share: BlockRun, caches: dict[int, KVCache], planned: PlannedSpan, adapters: Sequence[str]
) -> Span:
    cache = caches.get(planned.cache)
    if cache is None:
        cache = caches[planned.cache] = share.new_cache(planned.max_positions)
    adapter = None if planned.adapter < 0 else adapters[planned.adapter]
    return Span(cache, planned.start, planned.count, adapter=adapter)


class _CacheNumbers:
    """Names caches for the other ranks, and notes which are gone: theirs are to go with them."""

    def __init__(self) -> None:
        self._numbers: weakref.WeakKeyDictionary[KVCache, int] = weakref.WeakKeyDictionary()
        self._next = count()
        # Filled by whichever thread lets go of a cache.
        self._freed: deque[int] = deque()

    def number(self, cache: KVCache) -> int:
        known = self._numbers.get(cache)
        if known is None:
            known = self._numbers[cache] = next(self._next)
            weakref.finalize(cache, self._freed.append, known).atexit = False
        return known

    def take_freed(self) -> list[int]:
        return [self._freed.popleft() for _ in range(len(self._freed))]


def _numbered(adapters: Sequence[str]) -> dict[str | None, int]:
    return {name: place for place, name in enumerate(adapters)}


def _sum_shares(run: BlockRun, group: RankGroup) -> None:
    """Add up over all ranks what leaves each block's attention and each block's MLP."""

    def sum_attention(_: Any, __: Any, outputs: tuple[torch.Tensor, ...]) -> Any:
        return group.sum(outputs[0]), *outputs[1:]

    def sum_features(_: Any, __: Any, outputs: torch.Tensor) -> torch.Tensor:
        return group.sum(outputs)

    for layer in run.layers:
        layer.get_submodule("self_attn").register_forward_hook(sum_attention)
        layer.get_submodule("mlp").register_forward_hook(sum_features)


@contextmanager
def _all_or_none() -> Iterator[None]:
    """A rank that fails inside a step leaves the others waiting in it, so it is lost to them."""
    try:
        yield
    except RankLost:
        raise
    except Exception as error:
        raise RankLost(f"a rank failed inside a step: {type(error).__name__}") from error
