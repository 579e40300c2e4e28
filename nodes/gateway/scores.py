"""Log-probabilities of the tokens that were chosen, and of the likeliest at their places."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase


class TokenTexts:
    """What each token stands for in the middle of a text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __getitem__(self, token: int) -> str:
        if token not in self._known:
            # Alone, a token may lose the space before it: the second of two keeps it.
            once, twice = self._decoded([token]), self._decoded([token, token])
            self._known[token] = twice[len(once) :]
        return self._known[token]

    def _decoded(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False))


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token's text and natural log-probability, and the same of the likeliest at its place."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class Scores:
    """Listens to a generation's logits; then tells the score of each token as it comes.

    The scores are the model's own: before temperature, penalties and the cut at top_p.
    """

    def __init__(self, texts: TokenTexts, top: int) -> None:
        self._texts = texts
        self._top = top
        # A row for each token, in their order; written on the compute thread.
        self._rows: deque[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = deque()

    def note(self, logits: torch.Tensor) -> None:
        """The logits `[vocab]` of the next token, as `on_logits` tells them."""
        row = logits.float().log_softmax(dim=-1).cpu()
        values, ids = row.topk(min(self._top, len(row)))
        self._rows.append((row, values, ids))

    def of(self, token: int) -> TokenScore:
        """The score of the next token, which is this one."""
        row, values, ids = self._rows.popleft()
        likeliest = zip(ids.tolist(), values.tolist(), strict=True)
        top = tuple((self._texts[other], value) for other, value in likeliest)
        return TokenScore(self._texts[token], float(row[token]), top)
