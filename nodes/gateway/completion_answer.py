"""How completions are written, whole and in a stream."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from nodes.gateway.answer import Answer
from nodes.gateway.choice import Piece, Whole
from nodes.gateway.scores import TokenScore


class CompletionAnswer(Answer):
    """`text_completion`, which is both the whole and its chunks."""

    prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, model: str, fingerprint: str) -> None:
        super().__init__(model, fingerprint)
        # Characters of the scored tokens of each choice so far.
        self._offsets: dict[int, int] = defaultdict(int)

    def piece(self, index: int, piece: Piece) -> bytes:
        """A piece of a completion."""
        said = f'"text":{json.dumps(piece.text)}'
        if piece.scores:
            logprobs = _logprobs(piece.scores, self._offsets[index])
            self._offsets[index] += sum(len(score.text) for score in piece.scores)
            said += f',"logprobs":{json.dumps(logprobs)}'
        return self._event(index, said, piece.finish)

    def choice(self, index: int, said: Whole, *, scored: bool) -> dict[str, Any]:
        """A whole completion."""
        return {
            "index": index,
            "text": said.text,
            "logprobs": _logprobs(said.scores, 0) if scored else None,
            "finish_reason": said.finish,
        }


def _logprobs(scores: Sequence[TokenScore], start: int) -> dict[str, Any]:
    lengths = (len(score.text) for score in scores)
    return {
        "tokens": [score.text for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [dict(score.top) for score in scores],
        "text_offset": list(accumulate(lengths, initial=start))[:-1],
    }
