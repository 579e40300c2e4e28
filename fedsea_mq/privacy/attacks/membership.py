"""Whether a text that the attacker has is the one that was sent."""

from __future__ import annotations

import random
from collections.abc import Sequence

from fedsea_mq.privacy.attacks.attack import Seen
from fedsea_mq.privacy.attacks.public_model import PublicModel


def distance(model: PublicModel, seen: Seen, text: Sequence[int]) -> float:
    """Mean squared distance, a position, of what was received to what the text would have sent.

    Over the positions that both have: a text is told by its beginning.
    """
    count = min(len(text), seen.prompt)
    expected = model.states(text[:count])
    received = seen.received[:count].to(expected)
    return float((received - expected).square().sum(dim=-1).mean())


def membership_auc(
    model: PublicModel,
    sent: Sequence[tuple[Seen, Sequence[int]]],
    others: Sequence[Sequence[int]],
) -> float:
    """How surely the sent text is told from each of `others`: 1 always, 0.5 never.

    The area under the curve of right against wrong acceptances, over all thresholds of distance.
    """
    return _auc(model, [(seen, text, others) for seen, text in sent])


def membership_auc_one_token(
    model: PublicModel, sent: Sequence[tuple[Seen, Sequence[int]]], copies: int
) -> float:
    """The same, told from `copies` of each text of which one token of the prompt is another.

    Which one, and what it is instead, is drawn; not the first, which all texts have.
    """
    drawn = random.Random(0)  # noqa: S311 - hides nothing
    return _auc(
        model,
        [
            (seen, text, [_but_one(model, text, seen.prompt, drawn) for _ in range(copies)])
            for seen, text in sent
        ],
    )


def _but_one(
    model: PublicModel, text: Sequence[int], prompt: int, drawn: random.Random
) -> Sequence[int]:
    at = drawn.randrange(1, prompt)
    other = (text[at] + drawn.randrange(1, model.vocab)) % model.vocab
    return (*text[:at], other, *text[at + 1 :])


def _auc(
    model: PublicModel,
    sent: Sequence[tuple[Seen, Sequence[int], Sequence[Sequence[int]]]],
) -> float:
    from sklearn.metrics import roc_auc_score

    scores, is_it = [], []
    for seen, text, others in sent:
        for candidate in (text, *others):
            scores.append(-distance(model, seen, candidate))
            is_it.append(candidate is text)
    return float(roc_auc_score(is_it, scores))
