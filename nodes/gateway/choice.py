"""One answer as it comes: text, scores, calls of tools, and why it ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

from nodes.client import Generation, GenerationStats, Token
from nodes.gateway.meter import Meter
from nodes.gateway.scores import Scores, TokenScore
from nodes.gateway.tool_calls import ToolCall, ToolCallReader


@dataclass(frozen=True, slots=True)
class Piece:
    """What came at once. `finish` is in the last piece only."""

    text: str = ""
    scores: Sequence[TokenScore] = ()
    calls: Sequence[ToolCall] = ()
    finish: str | None = None


@dataclass(slots=True)
class Whole:
    """All pieces of an answer."""

    text: str = ""
    scores: list[TokenScore] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    finish: str = "length"

    def add(self, piece: Piece) -> None:
        """One more piece."""
        self.text += piece.text
        self.scores += piece.scores
        self.calls += piece.calls
        self.finish = piece.finish or self.finish


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer of an index; `said` is text that it begins with, `ends` the tokens that end it."""

    index: int
    generation: Generation
    meter: Meter
    ends: frozenset[int]
    said: str = ""
    scores: Scores | None = None
    tools: ToolCallReader | None = None

    @property
    def stats(self) -> GenerationStats:
        """What it cost so far."""
        return self.generation.stats

    async def pieces(self) -> AsyncGenerator[Piece]:
        """The answer; raises as the generation does."""
        if self.said:
            yield Piece(self.said)
        with self.meter.counting(self.stats):
            # Closed whatever happens: an answer that nobody reads must not keep a session.
            async with aclosing(aiter(self.generation)) as tokens:
                async for token in tokens:
                    self.meter.token()
                    text = token.text if self.tools is None else self.tools.push(token.text)
                    scores = self._scores(token)
                    if text or scores:
                        yield Piece(text, scores)
        yield self._last()

    async def whole(self) -> Whole:
        """The same at its end."""
        said = Whole()
        async with aclosing(self.pieces()) as pieces:
            async for piece in pieces:
                said.add(piece)
        return said

    def _scores(self, token: Token) -> Sequence[TokenScore]:
        # The token that ends an answer is no part of it.
        if self.scores is None or token.id in self.ends:
            return ()
        return (self.scores.of(token.id),)

    def _last(self) -> Piece:
        text, calls = ("", list[ToolCall]()) if self.tools is None else self.tools.finish()
        finish = "tool_calls" if calls else self.generation.finish.value
        return Piece(text, (), calls, finish)


@asynccontextmanager
async def together() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group for the choices of one request, which raises the first error as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
