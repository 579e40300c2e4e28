"""How the answers of a chat are written, whole and in a stream."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from nodes.gateway.answer import Answer
from nodes.gateway.choice import Piece, Whole
from nodes.gateway.scores import TokenScore


class ChatAnswer(Answer):
    """`chat.completion` and `chat.completion.chunk`."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self, index: int) -> bytes:
        """Whose message begins."""
        return self._event(index, '"delta":{"role":"assistant","content":""}', None)

    def piece(self, index: int, piece: Piece) -> bytes:
        """A piece of an answer."""
        delta = f'"delta":{{"content":{json.dumps(piece.text)}}}' if piece.text else '"delta":{}'
        if piece.calls:
            calls = [{"index": number, **call.as_json()} for number, call in enumerate(piece.calls)]
            said = {"content": piece.text} if piece.text else {}
            delta = f'"delta":{json.dumps({**said, "tool_calls": calls})}'
        if piece.scores:
            delta += f',"logprobs":{json.dumps(_logprobs(piece.scores))}'
        return self._event(index, delta, piece.finish)

    def choice(self, index: int, said: Whole, *, scored: bool) -> dict[str, Any]:
        """A whole answer."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": said.text if said.text or not said.calls else None,
            "refusal": None,
        }
        if said.calls:
            message["tool_calls"] = [call.as_json() for call in said.calls]
        return {
            "index": index,
            "message": message,
            "logprobs": _logprobs(said.scores) if scored else None,
            "finish_reason": said.finish,
        }


def _logprobs(scores: Sequence[TokenScore]) -> dict[str, Any]:
    return {
        "content": [
            {**_scored(one.text, one.logprob), "top_logprobs": _tops(one.top)} for one in scores
        ],
        "refusal": None,
    }


def _tops(top: Iterable[tuple[str, float]]) -> list[dict[str, Any]]:
    return [_scored(text, logprob) for text, logprob in top]


def _scored(text: str, logprob: float) -> dict[str, Any]:
    # Part of a character has no text of its own, and so no bytes that we could tell.
    known = None if "\ufffd" in text else list(text.encode())
    return {"token": text, "logprob": logprob, "bytes": known}
