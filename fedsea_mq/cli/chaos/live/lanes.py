"""What each client is asked for over and over, and whether it gets what it got undisturbed. Pure.

A lane is one generation at a time, always of the same request. The first of them, before any fault,
says which tokens all others must be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any, Final

_PROMPT_TOKENS: Final = (8, 48)
_NEW_TOKENS: Final = (24, 72)


@dataclass(slots=True)
class Ledger:
    """What all lanes came to."""

    generations: int = 0
    tokens: int = 0
    wrong_tokens: int = 0
    lost_tokens: int = 0
    begun_again: int = 0
    """Generations that went with their client, and were asked for anew."""
    errors: list[str] = field(default_factory=list)


class Lane:
    """One request, generated again and again. Times are seconds of any one clock."""

    def __init__(self, name: str, request: Mapping[str, Any], ledger: Ledger) -> None:
        self.name = name
        self._request = request
        self._ledger = ledger
        sampling = request.get("sampling", {})
        # How many tokens it must be, where nothing may end it sooner.
        self._asked_for = int(sampling["max_new_tokens"]) if sampling.get("ignore_eos") else 0
        self._expected: list[int] | None = None
        self._tokens: list[int] = []
        self._number = 0
        self._heard_at: list[float] = []
        self.is_running = False

    @property
    def knows(self) -> bool:
        """Whether the undisturbed generation is over."""
        return self._expected is not None

    def begin(self) -> dict[str, Any]:
        """The next generation's request, for a client process."""
        self._number += 1
        self._tokens = []
        self.is_running = True
        return {"id": self._id, **self._request}

    @property
    def _id(self) -> str:
        return f"{self.name}.{self._number}"

    def lose_client(self) -> None:
        """The client process is gone, and what it was generating with it."""
        if self.is_running:
            self._ledger.begun_again += 1
            self.is_running = False

    def hear(self, line: Mapping[str, Any], now: float) -> None:
        """A line of the client process about this lane's running generation."""
        if line.get("id") != self._id or not self.is_running:
            return
        if "token" in line:
            self._heard_at.append(now)
            self._hear_token(int(line["token"]))
        elif "done" in line:
            self._end(list(line["done"]["tokens"]))
        else:
            self.is_running = False
            self._ledger.errors.append(f"{line.get('error')}: {line.get('message')}")

    def _hear_token(self, token: int) -> None:
        self._tokens.append(token)
        self._ledger.tokens += 1
        at = len(self._tokens) - 1
        if self._expected is None:
            return
        if at >= len(self._expected) or self._expected[at] != token:
            self._ledger.wrong_tokens += 1

    def _end(self, tokens: Sequence[int]) -> None:
        self.is_running = False
        self._ledger.generations += 1
        if self._expected is None:
            self._expected = list(tokens)
        # What was told and what it is said to have been are one and the same.
        self._ledger.wrong_tokens += sum(
            told != said for told, said in zip(self._tokens, tokens, strict=False)
        )
        told = min(len(self._tokens), len(tokens))
        due = max(len(self._expected), self._asked_for)
        self._ledger.lost_tokens += max(0, due - told)

    def watch_from(self, since: float) -> None:
        """Forget when tokens came before that."""
        self._heard_at = [since, *(at for at in self._heard_at if at > since)]

    @property
    def tokens_since(self) -> int:
        """Tokens that came since `watch_from`."""
        return len(self._heard_at) - 1

    @property
    def waits(self) -> list[float]:
        """The times from token to token since `watch_from`."""
        return [after - before for before, after in pairwise(self._heard_at)]

    def longest_wait(self, now: float) -> float:
        """The longest time without a token since `watch_from`."""
        return max(after - before for before, after in pairwise([*self._heard_at, now]))


def requests(count: int, vocab: int, draw: Random) -> list[dict[str, Any]]:
    """Drawn prompts; every other is sampled, with a seed of its own."""
    return [
        {
            "tokens": [draw.randrange(vocab) for _ in range(draw.randint(*_PROMPT_TOKENS))],
            "sampling": {
                "max_new_tokens": draw.randint(*_NEW_TOKENS),
                "ignore_eos": True,
                **({"temperature": 1.0, "seed": number} if number % 2 else {}),
            },
        }
        for number in range(count)
    ]
