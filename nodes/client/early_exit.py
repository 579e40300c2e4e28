"""Guesses by leaving the trunk out: the client's head straight into its tail.

No weights of another model are needed, and nothing is sent: the guesses cost the client its own
blocks once more. How often they hold depends on the cut; see `docs/performance.md`. (Early exit
drafts: LayerSkip, Elhoushi et al., 2024.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch

from fedsea_mq.model.attention import Span
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.kv_cache import KVCache
from fedsea_mq.model.parts import Head, Tail


class _HeadCache(KVCache):
    """The head's share of a session's cache, which knows where the tail's is."""

    tail: KVCache


class EarlyExit:
    """Head and tail as a model of their own, over caches of its own."""

    def __init__(self, checkpoint: Checkpoint, head: Head, tail: Tail) -> None:
        self._head = head
        self._tail = tail
        self.ends = checkpoint.eos_token_ids
        self.max_positions = checkpoint.max_positions

    def new_cache(self, positions: int) -> KVCache:
        """Empty caches for one session; what the tail sees here are not the trunk's outputs."""
        cache = _HeadCache(self._head.run.kv_shape, positions)
        cache.tail = self._tail.run.new_cache(positions)
        return cache

    def run(self, ids: torch.Tensor, spans: Sequence[Span]) -> Sequence[torch.Tensor]:
        """Token ids of many sessions to each one's logits, as `Tail.logits` gives them."""
        beyond = [replace(span, cache=cast(_HeadCache, span.cache).tail) for span in spans]
        states = self._head(ids.to(self._head.run.kv_shape.device), spans)
        return self._tail.logits(states, beyond)
