"""What the answers to both kinds of request have in common, as OpenAI's API writes them."""

from __future__ import annotations

import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from nodes.client import GenerationStats
from nodes.gateway.choice import Piece, Whole

DONE = b"data: [DONE]\n\n"


class Answer(ABC):
    """The answer to one request of a model."""

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, model: str, fingerprint: str) -> None:
        self._common = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        # The same in every chunk, so written once: a token's own part is a few characters.
        fields = json.dumps({"object": self.chunk_object, **self._common})
        self._begin = f"data: {fields[:-1]},"

    def opening(self, index: int) -> bytes:
        """What a choice's stream begins with, if with anything."""
        return b""

    @abstractmethod
    def piece(self, index: int, piece: Piece) -> bytes:
        """The event of a piece."""

    @abstractmethod
    def choice(self, index: int, said: Whole, *, scored: bool) -> dict[str, Any]:
        """A whole choice, with the scores of its tokens if it is `scored`."""

    def _event(self, index: int, said: str, finish: str | None) -> bytes:
        reason = "null" if finish is None else f'"{finish}"'
        choice = f'"choices":[{{"index":{index},{said},"finish_reason":{reason}}}]'
        return f"{self._begin}{choice}}}\n\n".encode()

    def usage_event(self, stats: Sequence[GenerationStats], prompts: int) -> bytes:
        """The last chunk of a stream that was asked for it."""
        usage = json.dumps(usage_of(stats, prompts))
        return f'{self._begin}"choices":[],"usage":{usage}}}\n\n'.encode()

    def whole(
        self, choices: Sequence[dict[str, Any]], stats: Sequence[GenerationStats], prompts: int
    ) -> dict[str, Any]:
        """All choices at once."""
        return {
            "object": self.whole_object,
            **self._common,
            "choices": list(choices),
            "usage": usage_of(stats, prompts),
        }


def usage_of(stats: Sequence[GenerationStats], prompts: int) -> dict[str, int]:
    """Tokens of the prompts, each counted once, however many choices it has, and of all answers."""
    each = len(stats) // prompts
    asked = sum(one.prompt_tokens for one in stats[::each])
    new = sum(one.new_tokens for one in stats)
    return {"prompt_tokens": asked, "completion_tokens": new, "total_tokens": asked + new}


def event(value: dict[str, Any]) -> bytes:
    """Any other event of a stream."""
    return f"data: {json.dumps(value)}\n\n".encode()
