"""How likely a text is to go on in each of several ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fedsea_mq.errors import InvalidPrompt
from nodes.client.session import ClientSession, check_tokens

Tokens = Sequence[int]


def check_continuations(continuations: Sequence[Tokens], vocab: int) -> None:
    """Raise `InvalidPrompt` where there is nothing to score, or not of the vocabulary."""
    if not continuations or not all(continuations):
        raise InvalidPrompt("no continuations to score, or an empty one")
    for continuation in continuations:
        check_tokens(continuation, vocab)


async def log_likelihoods(
    session: ClientSession, prompt: Tokens, continuations: Sequence[Tokens]
) -> list[float]:
    """Each continuation's log-likelihood given the prompt, over a fresh session.

    The prompt is sent once; then each continuation of more than one token, from where the prompt
    ends.
    """
    firsts = [continuation[0] for continuation in continuations]
    totals = await session.advance(prompt, lambda logits: _at_last(logits, firsts))
    for number, continuation in enumerate(continuations):
        session.roll_back(len(prompt))
        totals[number] += await _rest(session, continuation)
    return totals


async def _rest(session: ClientSession, continuation: Tokens) -> float:
    """The log-likelihood of all tokens but the first, a frame at a time."""
    total, frame = 0.0, session.frame_positions
    for start in range(0, len(continuation) - 1, frame):
        following = continuation[start + 1 : start + 1 + frame]
        seen = continuation[start : start + len(following)]
        total += await session.advance(seen, _each_of(following), rows=len(seen))
    return total


def _at_last(logits: torch.Tensor, tokens: Tokens) -> list[float]:
    """Log-probability of each of `tokens` after the last row of logits `[rows, vocab]`."""
    found: list[float] = logits[-1].log_softmax(dim=-1)[list(tokens)].tolist()
    return found


def _each_of(tokens: Tokens) -> Callable[[torch.Tensor], float]:
    """What sums the log-probability of each token after its own row of logits `[rows, vocab]`."""

    def read(logits: torch.Tensor) -> float:
        ids = torch.tensor(list(tokens), device=logits.device)
        return float(logits.log_softmax(dim=-1).gather(1, ids[:, None]).sum())

    return read
