"""Scores against values worked out by hand."""

from __future__ import annotations

import pytest

from fedsea_mq.tasks.metrics import Rouge, among_several, exact_match, token_f1


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
    assert Rouge("rougeL")(answer, right) == {"rougeL": pytest.approx(score)}


def test_rouge_1_and_2_count_words_and_pairs_of_words() -> None:
    found = Rouge("rouge1", "rouge2")("the fox sold two bells", "two bells the fox sold")
    # All five words are shared; of four pairs each, "the fox", "fox sold" and "two bells".
    assert found == {"rouge1": pytest.approx(1.0), "rouge2": pytest.approx(3 / 4)}


@pytest.mark.parametrize(
    ("said", "references", "score"),
    [
        ("red fox", ["red fox"], 1.0),
        ("red fox", ["a fox"], 2 / 3),
        # Without the first the best is 2/3, without the second it is 1.
        ("red fox", ["red fox", "the fox"], (2 / 3 + 1) / 2),
        # Only leaving out the one that is right costs anything.
        ("red fox", ["red fox", "hen", "owl", "cat"], 3 / 4),
        ("red fox", ["red fox", "the red fox", "owl"], 1.0),
        ("red fox", [], 0.0),
    ],
)
def test_of_several_references_each_is_left_out_once_as_in_coqas_script(
    said: str, references: list[str], score: float
) -> None:
    assert among_several(token_f1, said, references) == pytest.approx(score)
