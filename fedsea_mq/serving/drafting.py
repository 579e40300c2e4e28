"""Drafts for speculation: guesses at the next tokens, and how many of them are worth sending.

A draft costs nothing but positions: the trunk's outputs at the drafted tokens come back with the
one that was due, and all that the sampler would have chosen itself is kept. So the tokens are those
of plain decoding, seeded sampling included (speculative decoding, Leviathan et al., 2023, with
drafts that are certain of themselves: accepting a guess if it equals the sampled token leaves the
distribution as it is). Pure: no clock, no tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from fedsea_mq.serving.step_cost import StepCost

# The longest run of last tokens that is looked up, and the shortest.
_LONGEST: Final = 3
_SHORTEST: Final = 1
_SMOOTHING: Final = 0.1
# A guess at first, and never so low that drafting could not come back.
_HOPEFUL: Final = 0.7
_LEAST: Final = 0.05
_FORGIVING: Final = 0.01


class Drafts(Protocol):
    """Where the guesses of one generation come from."""

    async def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """At most `most` tokens that may come after `tokens`, which only ever grow."""
        ...

    def close(self) -> None:
        """No more guesses are wanted."""
        ...


class PromptLookup:
    """Guesses that what followed the last tokens before will follow them again.

    Answers repeat their prompts: names, numbers, whole phrases (prompt lookup decoding, Saxena,
    2023). The longest run of last tokens that occurred before counts, and of its occurrences the
    latest.
    """

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    async def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """At most `most` tokens that may come after `tokens`, which only ever grow."""
        for end in range(self._indexed + 1, len(tokens)):
            for length in range(_SHORTEST, min(_LONGEST, end) + 1):
                self._after[tuple(tokens[end - length : end])] = end
        self._indexed = max(self._indexed, len(tokens) - 1)
        for length in range(min(_LONGEST, len(tokens)), _SHORTEST - 1, -1):
            start = self._after.get(tuple(tokens[-length:]))
            if start is not None:
                return list(tokens[start : start + most])
        return []

    def close(self) -> None:
        """Nothing is held."""


@dataclass(slots=True)
class DraftLength:
    """How long drafts should be, from how often guesses hold and what a step costs.

    A draft of k guesses that each hold with probability a gives (1 - a^(k+1)) / (1 - a) tokens in
    the time of one round trip with k + 1 positions. The k with most tokens a second is taken.
    """

    most: int
    _holds: float = _HOPEFUL
    _cost: StepCost = field(default_factory=StepCost)

    def best(self) -> int:
        """Guesses to send with the next step."""
        fixed, each = self._cost.fixed_s, self._cost.each_s
        if not fixed + each:
            return self.most
        return max(range(self.most + 1), key=lambda k: self._tokens(k) / (fixed + (k + 1) * each))

    def _tokens(self, guesses: int) -> float:
        a = self._holds
        return (1 - a ** (guesses + 1)) / (1 - a)

    def note(self, guesses: int, held: int, seconds: float) -> None:
        """A step took so long, and of its guesses the first `held` were right."""
        self._cost.observe(guesses + 1, seconds)
        tried = min(guesses, held + 1)  # nothing is known of those after the first wrong one
        for number in range(tried):
            self._holds += _SMOOTHING * ((number < held) - self._holds)
        self._holds = min(max(self._holds, _LEAST), 1 - 1e-3)

    def hope(self) -> None:
        """Nothing was tried: think a little better of guesses, so that they are tried again."""
        self._holds += _FORGIVING * (_HOPEFUL - self._holds)


@dataclass(slots=True)
class Drafting:
    """The drafts of one generation; how long they should be is learned over all of a client's."""

    length: DraftLength
    source: Drafts

    async def draft(self, tokens: Sequence[int], room: int) -> list[int]:
        """Guesses at what follows `tokens`, at most `room`."""
        most = min(room, self.length.best())
        if most < 1:
            self.length.hope()
            return []
        return await self.source.draft(tokens, most)
