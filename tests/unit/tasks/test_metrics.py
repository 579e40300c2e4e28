"""Scores against values worked out by hand."""

from __future__ import annotations

import pytest

from fedsea_mq.tasks.metrics import RougeL, exact_match, token_f1


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [
        ("a red fox", "The red fox.", 1),
        ("RED FOX!", "red fox", 1),
        ("", "", 1),
        ("the", "", 1),
        ("red  fox\n", "red fox", 1),
        ("fox red", "red fox", 0),
        ("red", "red fox", 0),
        ("yes", "no", 0),
        ("another", "an other", 0),
    ],
)
def test_exact_match_compares_words_without_case_articles_and_punctuation(
    answer: str, right: str, score: float
) -> None:
    assert exact_match(answer, right) == score


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [
        ("a red fox", "the red fox", 1.0),
        ("red", "red fox", 2 / 3),  # precision 1, recall 1/2
        ("a big red fox ran", "red fox", 2 / 3),  # precision 2/4, recall 1
        ("red red", "red fox", 0.5),  # a word counts as often as both have it
        ("grey cat", "red fox", 0.0),
        ("", "fox", 0.0),
        ("fox", "", 0.0),
        ("", "", 1.0),
        ("the", "a", 1.0),
    ],
)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(
    answer: str, right: str, score: float
) -> None:
    assert token_f1(answer, right) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [
        ("the fox sold two bells", "the fox sold two bells", 1.0),
        # Longest common subsequence 3 (the, sold, bells) of 4 and 5 words: 2 * 3 / 9.
        ("the cat sold bells", "the fox sold two bells", 2 * 3 / 9),
        ("bells two sold", "sold two bells", 1 / 3),  # order counts
        ("nothing", "the fox", 0.0),
        ("", "the fox", 0.0),
    ],
)
def test_rouge_l_is_the_longest_common_subsequence(answer: str, right: str, score: float) -> None:
    assert RougeL()(answer, right) == pytest.approx(score)
