"""Generating tokens over a session, and what a generation cost."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from transformers import PreTrainedTokenizerBase

from fedsea_mq.errors import CheckpointError
from fedsea_mq.model.sampling import Sampler, SamplingSettings
from fedsea_mq.model.text_stream import TextStream
from nodes.client.session import ClientSession


class Finish(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. `text` may be empty while a character or a stop string is incomplete."""

    id: int
    text: str


@dataclass(slots=True)
class GenerationStats:
    """What a generation cost, filled in as it goes. Bytes are on the wire, framing included."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    node: str = ""
    recoveries: int = 0
    started_at: float = field(default_factory=time.perf_counter)
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    prefill_bytes: tuple[int, int] = (0, 0)
    total_bytes: tuple[int, int] = (0, 0)

    @property
    def ttft_ms(self) -> float:
        """Time to first token, opening the session included."""
        return max(0.0, self.first_token_at - self.started_at) * 1000

    @property
    def tpot_ms(self) -> float:
        """Time per output token after the first."""
        return (self.last_token_at - self.first_token_at) * 1000 / max(1, self.new_tokens - 1)

    @property
    def bytes_per_token(self) -> tuple[float, float]:
        """Bytes up and down of a decode step; zero if there was none."""
        steps = self.new_tokens - 1
        if steps < 1:
            return 0.0, 0.0
        up, down = (
            (total - prefill) / steps
            for total, prefill in zip(self.total_bytes, self.prefill_bytes, strict=True)
        )
        return up, down


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole generation."""

    text: str
    tokens: list[int]
    finish: Finish
    stats: GenerationStats


@dataclass(slots=True)
class GenerationPlan:
    """What to generate from, and how."""

    tokenizer: PreTrainedTokenizerBase | None
    eos: frozenset[int]
    sampling: SamplingSettings
    strip_start: bool = False
    on_logits: Callable[[torch.Tensor], None] | None = None

    def text_stream(self) -> TextStream | None:
        """Where the tokens become text; None for a model without a tokenizer."""
        if self.tokenizer is None:
            if self.sampling.stop:
                raise CheckpointError("stop strings need a tokenizer, and the model has none")
            return None
        return TextStream(self.tokenizer, self.sampling.stop, strip_start=self.strip_start)


class Generation:
    """Tokens as they come: `async for token in generation`; `finish` and `stats` once it ended."""

    def __init__(self, steps: Callable[[Generation], AsyncGenerator[Token]]) -> None:
        self._steps = steps
        self.stats = GenerationStats()
        self.finish = Finish.LENGTH

    def __aiter__(self) -> AsyncGenerator[Token]:
        return self._steps(self)

    async def complete(self) -> Completion:
        """Run to the end and return the whole."""
        texts, ids = [], []
        async for token in self:
            texts.append(token.text)
            ids.append(token.id)
        return Completion("".join(texts), ids, self.finish, self.stats)


async def decode(
    session: ClientSession, prompt: Sequence[int], plan: GenerationPlan, generation: Generation
) -> AsyncGenerator[Token]:
    """Advance `session` to the end of `prompt`, then a sampled token at a time.

    The session may hold a prefix of the prompt already. The last token is sampled, not cached.
    """
    stats, sampler, stream = generation.stats, Sampler(plan.sampling), plan.text_stream()
    tokens = list(prompt)
    stats.prompt_tokens = len(tokens)

    def read(logits: torch.Tensor) -> int:
        if plan.on_logits is not None:
            plan.on_logits(logits)
        return sampler.choose(tokens, logits)

    pending: Sequence[int] = tokens[session.cached :]
    for _ in range(plan.sampling.max_new_tokens):
        chosen = await session.advance(pending, read)
        _note(stats, session)
        tokens.append(chosen)
        pending = [chosen]
        ended = chosen in plan.eos and not plan.sampling.ignore_eos
        text = "" if stream is None or ended else stream.push(chosen)
        if ended or (stream is not None and stream.stopped):
            generation.finish = Finish.STOP
            yield Token(chosen, text + ("" if stream is None else stream.flush()))
            return
        if stats.new_tokens == plan.sampling.max_new_tokens and stream is not None:
            text += stream.flush()
        yield Token(chosen, text)


def _note(stats: GenerationStats, session: ClientSession) -> None:
    stats.last_token_at = time.perf_counter()
    stats.new_tokens += 1
    stats.node, stats.recoveries = session.node, session.recoveries
    stats.total_bytes = (session.traffic.bytes_up, session.traffic.bytes_down)
    if stats.new_tokens == 1:
        stats.first_token_at = stats.last_token_at
        stats.prefill_bytes = stats.total_bytes
