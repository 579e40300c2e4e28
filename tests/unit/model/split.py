"""The three parts of a model in one process, and the unsplit model to compare with."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from fedsea_mq.model.attention import Span
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.kv_cache import KVCache
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Cut
from fedsea_mq.model.parts import BlockRun, Head, Tail, load_client, load_trunk

TOLERANCE = 1e-5
EXACT = Numerics()


def unsplit(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The oracle."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def prompt(length: int, seed: int = 0, vocab: int = 300) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(vocab) for _ in range(length)]


@torch.inference_mode()
def oracle_logits(model: Any, ids: list[int]) -> torch.Tensor:
    """`[positions, vocab]` of the unsplit model."""
    logits: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return logits


@dataclass
class Session:
    """Caches of one session in each part, and how far it got."""

    caches: tuple[KVCache, KVCache, KVCache]
    cached: int = 0


@dataclass
class Split:
    """Head, trunk and tail."""

    head: Head
    trunk: BlockRun
    tail: Tail

    @classmethod
    def load(cls, folder: Path | str, cut: Cut, numerics: Numerics = EXACT) -> Split:
        checkpoint = Checkpoint.open(str(folder))
        head, tail = load_client(checkpoint, cut, numerics)
        return cls(head, load_trunk(checkpoint, cut, numerics), tail)

    def session(self, max_positions: int = 64) -> Session:
        runs = (self.head.run, self.trunk, self.tail.run)
        first, second, third = (run.new_cache(max_positions) for run in runs)
        return Session((first, second, third))

    @torch.inference_mode()
    def step(self, work: list[tuple[Session, list[int]]]) -> list[torch.Tensor]:
        """All new positions of these sessions in one packed pass; logits of each, a row each."""
        head, trunk, tail = (
            [Span(session.caches[part], session.cached, len(ids)) for session, ids in work]
            for part in range(3)
        )
        packed = torch.tensor([token for _, ids in work for token in ids])
        states = self.trunk(self.head(packed, head), trunk)
        hidden = self.tail(states, tail)
        logits = self.tail.lm_head(self.tail.norm(hidden))
        for session, ids in work:
            session.cached += len(ids)
        return list(torch.split(logits, [len(ids) for _, ids in work]))
