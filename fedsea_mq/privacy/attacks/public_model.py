"""The whole model, as anybody has it who can download it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import torch

from fedsea_mq.errors import AdapterError
from fedsea_mq.model.attention import Span
from fedsea_mq.model.calibration import calibration_states
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.held_adapters import hold_adapters, open_adapters
from fedsea_mq.model.kv_cache import KVCache
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.packed_attention import PackedLayout
from fedsea_mq.model.partition import Cut
from fedsea_mq.model.parts import BlockRun, Head, Tail, load_client, load_trunk
from fedsea_mq.privacy.noise import NoiseSource, clipped, typical_rms
from fedsea_mq.settings import ModelSettings

_ADAPTER = "known"


@dataclass(frozen=True, slots=True)
class Caches:
    """Keys and values of one sequence in the three parts."""

    head: KVCache
    trunk: KVCache
    tail: KVCache

    def copy_from(self, other: Caches, stop: int) -> None:
        """Hold what `other` holds of the positions before `stop`."""
        self.head.copy_from(other.head, stop)
        self.trunk.copy_from(other.trunk, stop)
        self.tail.copy_from(other.tail, stop)


@dataclass(frozen=True, slots=True)
class PublicModel:
    """Head, trunk and tail together; `adapter` names what they are run with, if anything.

    What leaves the head is given as the trunk would best look at it: clipped as the client clips,
    and multiplied by `whitening` `[hidden, hidden]`, which makes shaped noise isotropic again.
    """

    checkpoint: Checkpoint
    head: Head
    trunk: BlockRun
    tail: Tail
    adapter: str | None = None
    clip: float | None = None
    whitening: torch.Tensor | None = None

    @classmethod
    def load(cls, model: ModelSettings, adapter: Path | None = None) -> Self:
        """Read the parts at the cut of `model`; `adapter` is a folder in peft's format.

        Raises what `Checkpoint.open` and `Checkpoint.load` raise, and `AdapterError`.
        """
        checkpoint = Checkpoint.open(model.path)
        cut = Cut(model.head_blocks, model.tail_blocks)
        numerics = replace(Numerics.of(model), int8_weights=False, trains=True)
        head, tail = load_client(checkpoint, cut, numerics)
        trunk = load_trunk(checkpoint, cut, numerics)
        if adapter is None:
            return cls(checkpoint, head, trunk, tail)
        opened = open_adapters({_ADAPTER: adapter}, checkpoint.blocks)
        changed = [hold_adapters(run, opened)[_ADAPTER] for run in (head.run, trunk, tail.run)]
        if not any(changed):
            raise AdapterError(f"{adapter}: nothing for any block of the model")
        return cls(checkpoint, head, trunk, tail, _ADAPTER)

    def against(self, noise: NoiseSource) -> Self:
        """The same for an attacker that knows how states are clipped and the noise is shaped."""
        root = None if noise.shape is None else noise.shape.root
        whitening = None if root is None else torch.linalg.inv(root.double()).float()
        return replace(self, clip=noise.clip, whitening=whitening)

    def presented(self, states: torch.Tensor) -> torch.Tensor:
        """States `[positions, hidden]` that leave the head, as the attacker looks at them."""
        states = states.float() if self.clip is None else clipped(states, self.clip)
        return self.whitened(states)

    def whitened(self, received: torch.Tensor) -> torch.Tensor:
        """What was received `[positions, hidden]`, as the attacker looks at it."""
        return received if self.whitening is None else received @ self.whitening.to(received)

    @property
    def vocab(self) -> int:
        """Size of the vocabulary."""
        return int(self.checkpoint.config.vocab_size)

    def head_rms(self) -> float:
        """What relative noise is relative to: the typical RMS of the head's output."""
        return typical_rms(calibration_states(self.checkpoint, self.head))

    @property
    def device(self) -> str:
        """Where the parts are."""
        return self.head.run.kv_shape.device

    def caches(self, positions: int) -> Caches:
        """Empty ones for a sequence of as many positions."""
        parts = (self.head.run, self.trunk, self.tail.run)
        return Caches(*(run.new_cache(positions) for run in parts))

    def whole(self, run: BlockRun) -> Callable[[torch.Tensor, PackedLayout], torch.Tensor]:
        """One of the parts' blocks as a differentiable function of `[total, hidden]` inputs."""
        return partial(run.sequences, adapter=self.adapter)

    @torch.inference_mode()
    def states(self, tokens: Sequence[int]) -> torch.Tensor:
        """What leaves the head for a sequence, without noise: `[positions, hidden]`, fp32."""
        cache = self.head.run.new_cache(len(tokens))
        span = Span(cache, 0, len(tokens), adapter=self.adapter)
        ids = torch.tensor(list(tokens), device=self.device)
        return self.presented(self.head(ids, [span]))

    @torch.inference_mode()
    def alternatives(self, ids: torch.Tensor, cache: KVCache, start: int) -> torch.Tensor:
        """What would leave the head for each of `ids` at position `start`: `[ids, hidden]`."""
        run = self.head.run
        embedded = self.head.embedding(ids).to(run.dtype)
        return self.presented(run.alternatives(embedded, cache, start, self.adapter))

    @torch.inference_mode()
    def advance(self, tokens: Sequence[int], caches: Sequence[Caches], start: int) -> torch.Tensor:
        """Put one token at position `start` of each sequence; log-probabilities of the next.

        Gives `[sequences, vocab]`.
        """
        hidden = self.advance_head(tokens, caches, start)
        hidden = self.trunk(hidden, self._spans(caches, "trunk", start))
        logits = self.tail.logits(hidden, self._spans(caches, "tail", start))
        return torch.cat(list(logits)).log_softmax(dim=-1)

    @torch.inference_mode()
    def advance_head(
        self, tokens: Sequence[int], caches: Sequence[Caches], start: int
    ) -> torch.Tensor:
        """As `advance`, of the head alone: its states `[sequences, hidden]`."""
        ids = torch.tensor(list(tokens), device=self.device)
        states: torch.Tensor = self.head(ids, self._spans(caches, "head", start))
        return states

    def _spans(self, caches: Sequence[Caches], part: str, start: int) -> list[Span]:
        return [Span(getattr(one, part), start, 1, adapter=self.adapter) for one in caches]

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """What the whole model says after each token of a sequence, without noise.

        Gives `[positions, vocab]`.
        """
        count, caches = len(tokens), self.caches(len(tokens))
        head, trunk, tail = (
            Span(cache, 0, count, read=count, adapter=self.adapter)
            for cache in (caches.head, caches.trunk, caches.tail)
        )
        hidden = self.head(torch.tensor(list(tokens), device=self.device), [head])
        (logits,) = self.tail.logits(self.trunk(hidden, [trunk]), [tail])
        return logits

    @torch.inference_mode()
    def answers(self, outputs: torch.Tensor) -> torch.Tensor:
        """What the tail says after each of the trunk's outputs: logits `[positions, vocab]`."""
        count = outputs.shape[0]
        cache = self.tail.run.new_cache(count)
        span = Span(cache, 0, count, read=count, adapter=self.adapter)
        (logits,) = self.tail.logits(outputs.to(self.device, self.tail.run.dtype), [span])
        return logits
