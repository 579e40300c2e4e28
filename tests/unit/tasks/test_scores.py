"""Official metrics against values worked out by hand."""

from __future__ import annotations

import pytest

from fedsea_mq.tasks import scores
from fedsea_mq.tasks.task import Answered, Example, Prompt


def answered(
    right: str | None,
    said: str,
    *,
    references: tuple[str, ...] = (),
    label: str = "",
    group: str = "",
) -> Answered:
    example = Example(
        Prompt("p"), right, ("yes", "no"), references=references, label=label, group=group
    )
    return Answered(example, said)


def test_accuracy_is_the_share_of_right_answers() -> None:
    answers = [answered("yes", "yes"), answered("no", "yes"), answered("no", "no")]
    assert scores.accuracy(answers) == {"accuracy": pytest.approx(2 / 3)}


def test_macro_f1_is_the_mean_of_the_f1_of_each_class() -> None:
    pairs = [("yes", "yes"), ("yes", "no"), ("no", "no"), ("maybe", "no")]
    # yes: precision 1, recall 1/2, F1 2/3; no: precision 1/3, recall 1, F1 1/2; maybe: F1 0.
    found = scores.macro_f1([answered(right, said) for right, said in pairs])
    assert found == {"accuracy": 0.5, "macro_f1": pytest.approx((2 / 3 + 1 / 2 + 0) / 3)}


def test_multirc_counts_yeses_over_all_answers_and_questions_as_a_whole() -> None:
    answers = [
        answered("yes", "yes", group="0"),
        answered("no", "no", group="0"),
        answered("yes", "no", group="1"),
        answered("yes", "yes", group="1"),
        answered("no", "yes", group="2"),
    ]
    # Three said yes, two of them rightly; three are yes: F1 = 2/3. One question of three is whole.
    found = scores.answers_and_questions(answers)
    assert found == {"f1a": pytest.approx(2 / 3), "em": pytest.approx(1 / 3)}


def test_multirc_without_any_yes_is_nought_and_not_an_error() -> None:
    found = scores.answers_and_questions([answered("no", "no", group="0")])
    assert found == {"f1a": 0.0, "em": 1.0}


def test_record_takes_the_best_of_an_entitys_variants() -> None:
    answers = [
        answered("Mara Holt.", "Holt.", references=("Mara Holt", "Holt")),
        answered("Mara Holt.", "Mara Bell.", references=("Mara Holt",)),
    ]
    # The first is exact; the second shares one word of two: F1 1/2.
    assert scores.entities(answers) == {"f1": pytest.approx(0.75), "em": 0.5}


def test_coqa_is_the_mean_over_turns_against_all_references() -> None:
    answers = [
        answered("red", "Red", references=("red",)),
        answered("a fox", "the fox", references=("a fox", "fox", "a red fox")),
        answered("no", "yes", references=("no",)),
    ]
    assert scores.conversation(answers) == {"f1": pytest.approx(2 / 3), "em": pytest.approx(2 / 3)}


def test_xsum_reports_three_rouges() -> None:
    # Three of four words are shared, of three pairs "the fox", and in order all three words.
    found = scores.summary([answered("the fox sold bells", "the fox bells ran")])
    assert found == {
        "rouge_1": pytest.approx(3 / 4),
        "rouge_2": pytest.approx(1 / 3),
        "rouge_l": pytest.approx(3 / 4),
    }


@pytest.mark.parametrize(
    ("said", "label", "right"),
    [
        ("the old baker.", "yes", 1.0),
        ("Baker", "yes", 1.0),  # part of the noun
        ("the old baker of Ashford", "yes", 1.0),  # the noun and more
        ("the miller", "yes", 0.0),
        ("the miller", "no", 1.0),  # rightly another one
        ("the old baker", "no", 0.0),
        ("the miller. The old baker left", "no", 1.0),  # the form ended before
        ("", "yes", 0.0),
    ],
)
def test_wsc_compares_the_noun_that_is_said(said: str, label: str, right: float) -> None:
    answer = "the old baker" if label == "yes" else None
    one = answered(answer, said, references=("the old baker",), label=label)
    assert scores.nouns([one]) == {"accuracy": right}


def test_data_of_ones_own_is_scored_by_choice_or_by_words() -> None:
    assert scores.own([answered("yes", "yes")]) == {"accuracy": 1.0}
    free = Answered(Example(Prompt("p"), "two red bells"), "two bells")
    found = scores.own([free])
    assert found == {"f1": pytest.approx(0.8), "em": 0.0, "rouge_l": pytest.approx(0.8)}
