"""Scores of an answer against the right one, each from 0 to 1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Final

_ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> list[str]:
    """Lower case, without punctuation and articles: how CoQA's and SQuAD's scripts compare."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def exact_match(answer: str, right: str) -> float:
    """1 if the normalised answers are the same."""
    return float(normalised(answer) == normalised(right))


def same_verdict(answer: str, right: str) -> float:
    """1 if both end in the same word: the yes or no after what the passage was read to say."""
    return float(normalised(answer)[-1:] == normalised(right)[-1:])


def token_f1(answer: str, right: str) -> float:
    """Harmonic mean of precision and recall over normalised words (CoQA's and SQuAD's F1)."""
    said, wanted = normalised(answer), normalised(right)
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(said), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def among_several(
    score: Callable[[str, str], float], answer: str, references: Sequence[str]
) -> float:
    """CoQA's score against several right answers, from 0 to 1.

    Each is left out once, and the best of the others counts: so its script scores people, of whom
    there is one fewer to compare with, and the model alike. A single one is compared with.
    """
    if len(references) < 2:
        return max((score(answer, right) for right in references), default=0.0)
    scores = [score(answer, right) for right in references]
    return fmean(max(scores[:out] + scores[out + 1 :]) for out in range(len(scores)))


class Rouge:
    """ROUGE F-measures from the `rouge-score` library, without stemming."""

    def __init__(self, *names: str) -> None:
        # Imported here: it takes a second, and few need it.
        from rouge_score.rouge_scorer import RougeScorer

        self._scorer = RougeScorer(list(names), use_stemmer=False)

    def __call__(self, answer: str, right: str) -> dict[str, float]:
        """The scores of one summary, by name."""
        scores = self._scorer.score(right, answer)
        return {name: float(score.fmeasure) for name, score in scores.items()}
