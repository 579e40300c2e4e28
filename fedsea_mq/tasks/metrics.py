"""Scores of an answer against the right one, each from 0 to 1."""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import Final

from rouge_score.rouge_scorer import RougeScorer

_ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


def _normalised(text: str) -> list[str]:
    """Lower case, without punctuation and articles: how CoQA's and SQuAD's scripts compare."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def exact_match(answer: str, right: str) -> float:
    """1 if the normalised answers are the same."""
    return float(_normalised(answer) == _normalised(right))


def same_verdict(answer: str, right: str) -> float:
    """1 if both end in the same word: the yes or no after what the passage was read to say."""
    return float(_normalised(answer)[-1:] == _normalised(right)[-1:])


def token_f1(answer: str, right: str) -> float:
    """Harmonic mean of precision and recall over normalised words (CoQA's and SQuAD's F1)."""
    said, wanted = _normalised(answer), _normalised(right)
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(said), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


class RougeL:
    """ROUGE-L F-measure, from the `rouge-score` library."""

    def __init__(self) -> None:
        self._scorer = RougeScorer(["rougeL"], use_stemmer=False)

    def __call__(self, answer: str, right: str) -> float:
        """The score of one summary."""
        return float(self._scorer.score(right, answer)["rougeL"].fmeasure)
