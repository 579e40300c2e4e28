"""Generating tokens over a session, and what a generation cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import torch
from transformers import PreTrainedTokenizerBase

from fedsea_mq.errors import CheckpointError
from fedsea_mq.model.sampling import Sampler, SamplingSettings
from fedsea_mq.model.text_stream import TextStream
from fedsea_mq.serving.drafting import Drafting
from fedsea_mq.transport.requests import Traffic
from nodes.client.request_watch import RequestWatch
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
    """What a generation cost, filled in as it goes."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    drafted: int = 0
    """Tokens that were guessed and sent ahead."""
    accepted: int = 0
    """Of those, the ones that were right."""
    node: str = ""
    traffic: Traffic = field(default_factory=Traffic)
    """What its session had sent and received at the last token, earlier answers included."""
    prefill: Traffic = field(default_factory=Traffic)
    """The same at the first token."""
    recoveries: int = 0
    started_at: float = field(default_factory=time.perf_counter)
    first_token_at: float = 0.0
    last_token_at: float = 0.0

    @property
    def ttft_ms(self) -> float:
        """Time to first token, opening the session included."""
        return max(0.0, self.first_token_at - self.started_at) * 1000

    @property
    def tpot_ms(self) -> float:
        """Time per output token after the first."""
        return (self.last_token_at - self.first_token_at) * 1000 / max(1, self.new_tokens - 1)

    @property
    def direct_share(self) -> float:
        """Share of the round trips that did not pass the broker."""
        return self.traffic.direct_trips / max(1, self.traffic.round_trips)

    @property
    def bytes_per_token(self) -> tuple[float, float]:
        """Bytes up and down of a decode step; zero if there was none."""
        steps, total, prefill = max(1, self.new_tokens - 1), self.traffic, self.prefill
        up, down = total.bytes_up - prefill.bytes_up, total.bytes_down - prefill.bytes_down
        return up / steps, down / steps


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
    # Makes the drafts of a generation of so many positions, if there are to be any.
    drafts: Callable[[int], Drafting] | None = None
    # What the session is to run with.
    adapter: str | None = None

    @property
    def ends(self) -> frozenset[int]:
        """The tokens after which there are no more."""
        return frozenset() if self.sampling.ignore_eos else self.eos

    def text_stream(self) -> TextStream | None:
        """Where the tokens become text; None for a model without a tokenizer."""
        if self.tokenizer is None:
            if self.sampling.stop:
                raise CheckpointError("stop strings need a tokenizer, and the model has none")
            return None
        return TextStream(self.tokenizer, self.sampling.stop, strip_start=self.strip_start)


class Generation:
    """Tokens as they come: `async for token in generation`; `finish` and `stats` once it ended.

    Logs and spans of all parties know it by its `trace_id`.
    """

    def __init__(
        self, steps: Callable[[Generation], AsyncGenerator[Token]], watch: RequestWatch
    ) -> None:
        self._steps = steps
        self._watch = watch
        self.trace_id = watch.trace_id
        self.stats = GenerationStats()
        self.finish = Finish.LENGTH

    def __aiter__(self) -> AsyncGenerator[Token]:
        return self._watch.watching(self.stats, self._steps(self))

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
    """Advance `session` to the end of `prompt`, then by sampled tokens and drafts of the next.

    The session may hold a prefix of the prompt already. The last token is sampled, not cached.
    """
    stats, most = generation.stats, plan.sampling.max_new_tokens
    tokens = list(prompt)
    stats.prompt_tokens = len(tokens)
    text = _Text(plan)
    chooser = _Chooser(plan, tokens)
    drafting = None if plan.drafts is None else plan.drafts(len(tokens) + most)
    pending = tokens[session.cached :]
    clock = asyncio.get_running_loop().time
    try:
        while True:
            begun, draft = clock(), list[int]()
            if drafting is not None:
                room = min(most - stats.new_tokens, session.frame_positions) - 1
                draft = await drafting.draft(tokens, room)
            chosen = await session.advance(
                [*pending, *draft], chooser.reading(draft), rows=len(draft) + 1
            )
            # Of the drafts, those that were not chosen are not part of the sequence.
            session.roll_back(session.cached - len(draft) + len(chosen) - 1)
            if drafting is not None and stats.new_tokens:  # a prompt's time says nothing of drafts
                seconds = clock() - begun
                drafting.length.note(len(draft), len(chosen) - 1, seconds)
            stats.drafted += len(draft)
            stats.accepted += len(chosen) - 1
            for token in chosen:
                _note(stats, session)
                tokens.append(token)
                ended = token in plan.ends
                said, stopped = text.push(token, ended=ended, last=stats.new_tokens == most)
                if ended or stopped:
                    generation.finish = Finish.STOP
                yield Token(token, said)
                if ended or stopped or stats.new_tokens == most:
                    return
            pending = [chosen[-1]]
    finally:
        if drafting is not None:
            drafting.source.close()


class _Chooser:
    """Samples the tokens that rows of logits stand for, as long as drafts turn out right."""

    def __init__(self, plan: GenerationPlan, tokens: Sequence[int]) -> None:
        self._plan = plan
        self._sampler = Sampler(plan.sampling, len(tokens))
        self._tokens = tokens

    def reading(self, draft: Sequence[int]) -> Callable[[torch.Tensor], list[int]]:
        """A function from logits `[1 + drafts, vocab]` to the tokens that come next, at least one.

        Each row but the first is worth something only if the token before it was guessed right.
        """

        def read(rows: torch.Tensor) -> list[int]:
            chosen: list[int] = []
            for row, guess in zip(rows, [*draft, None], strict=True):
                if self._plan.on_logits is not None:
                    self._plan.on_logits(row)
                chosen.append(self._sampler.choose([*self._tokens, *chosen], row))
                if chosen[-1] != guess or guess in self._plan.ends:
                    break
            return chosen

        return read


class _Text:
    """The text of tokens as they come, if the model has a tokenizer."""

    def __init__(self, plan: GenerationPlan) -> None:
        self._stream = plan.text_stream()

    def push(self, token: int, *, ended: bool, last: bool) -> tuple[str, bool]:
        """What can be said now, and whether it holds a stop string."""
        if self._stream is None:
            return "", False
        text = "" if ended else self._stream.push(token)
        stopped = self._stream.stopped
        if ended or stopped or last:
            text += self._stream.flush()
        return text, stopped


def _note(stats: GenerationStats, session: ClientSession) -> None:
    stats.last_token_at = time.perf_counter()
    stats.new_tokens += 1
    stats.node, stats.recoveries = session.node, session.recoveries
    stats.traffic = replace(session.traffic)  # as it is now: the session may go on
    if stats.new_tokens == 1:
        stats.first_token_at, stats.prefill = stats.last_token_at, stats.traffic
