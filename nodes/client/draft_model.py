"""A small model on the client that guesses what the large one will say."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final, Protocol

import torch

from fedsea_mq.errors import CheckpointError
from fedsea_mq.model.attention import Span
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.kv_cache import KVCache
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Cut
from fedsea_mq.model.parts import load_client, load_trunk
from fedsea_mq.protocol.envelope import SESSION_BYTES
from fedsea_mq.serving.batcher import Batcher
from fedsea_mq.serving.scheduler import Owner
from fedsea_mq.serving.work import Work
from fedsea_mq.settings import ModelSettings

# Nothing of a draft model leaves this process: it is loaded whole.
_WHOLE: Final = Cut(0, 0)


class Drafter(Protocol):
    """A model that guesses, for many sessions at a time."""

    ends: frozenset[int]
    max_positions: int

    def new_cache(self, positions: int) -> KVCache:
        """An empty cache for one session."""
        ...

    def run(self, ids: torch.Tensor, spans: Sequence[Span]) -> Sequence[torch.Tensor]:
        """Token ids of many sessions to each one's logits, as `Tail.logits` gives them."""
        ...


class DraftModel:
    """The whole of a small model with the vocabulary of the large one.

    Raises `CheckpointError` for another vocabulary, and as loading does.
    """

    def __init__(self, path: str, model: ModelSettings, vocab: int) -> None:
        checkpoint = Checkpoint.open(path)
        said = int(checkpoint.config.vocab_size)
        if said != vocab:
            raise CheckpointError(f"{path}: drafts from {said} tokens, the model has {vocab}")
        self._head, self._tail = load_client(checkpoint, _WHOLE, Numerics.of(model))
        self._blocks = load_trunk(checkpoint, _WHOLE, Numerics.of(model))
        self.ends = checkpoint.eos_token_ids
        self.max_positions = checkpoint.max_positions

    def new_cache(self, positions: int) -> KVCache:
        """An empty cache for one session."""
        return self._blocks.new_cache(positions)

    def run(self, ids: torch.Tensor, spans: Sequence[Span]) -> Sequence[torch.Tensor]:
        """Token ids of many sessions to each one's logits, as `Tail.logits` gives them."""
        return self._tail.logits(self._blocks(self._head(ids, spans), spans), spans)


class ModelDrafts:
    """The guesses of a model for one generation, greedy, with a cache of their own.

    `adapter` is that of the session, for a model which is made of the session's parts.
    """

    def __init__(
        self, model: Drafter, batcher: Batcher, positions: int, adapter: str | None
    ) -> None:
        self._model = model
        self._batcher = batcher
        self._adapter = adapter
        self._positions = min(positions, model.max_positions)
        self._cache = model.new_cache(self._positions)
        self._seen: list[int] = []
        self._owner = Owner(client=b"", session=secrets.token_bytes(SESSION_BYTES))

    async def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """At most `most` tokens that may come after `tokens`."""
        kept = min(len(self._seen), len(tokens) - 1)
        while self._seen[:kept] != list(tokens[:kept]):
            kept -= 1  # guesses that were wrong are still in the cache
        pending, guesses = list(tokens[kept:]), list[int]()
        while len(guesses) < min(most, self._positions - len(tokens)):
            guess = await self._next(kept, pending)
            kept += len(pending)
            self._seen = [*tokens, *guesses]
            guesses.append(guess)
            if guess in self._model.ends:
                break
            pending = [guess]
        return guesses

    async def _next(self, start: int, tokens: Sequence[int]) -> int:
        ids = torch.tensor(tokens)
        work = Work(
            self._owner,
            self._model.run,
            Span(self._cache, start, len(tokens), adapter=self._adapter),
            lambda: ids,
            lambda outputs: int(outputs[-1][-1].argmax()),
        )
        return await self._batcher.run(work)

    def close(self) -> None:
        """No more guesses are wanted."""
        self._batcher.session_left(self._owner.session)
