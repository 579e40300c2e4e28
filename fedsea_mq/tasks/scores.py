"""The official metrics of the tasks, each over all answers to a task, from 0 to 1."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Final

from fedsea_mq.tasks.dialogues import Kind
from fedsea_mq.tasks.metrics import (
    Rouge,
    among_several,
    exact_match,
    normalised,
    same_verdict,
    token_f1,
)
from fedsea_mq.tasks.task import Answered, Example, Score, Scores


def accuracy(answers: Sequence[Answered]) -> Scores:
    """The share of right answers."""
    # Imported here and below: training needs tasks and no metric, and this takes half a second.
    from sklearn.metrics import accuracy_score

    return {"accuracy": float(accuracy_score(*_right_and_said(answers)))}


def macro_f1(answers: Sequence[Answered]) -> Scores:
    """CB's: accuracy, and the mean of the classes' F1 over the classes that occur."""
    from sklearn.metrics import f1_score

    f1 = f1_score(*_right_and_said(answers), average="macro", zero_division=0.0)
    return {**accuracy(answers), "macro_f1": float(f1)}


def answers_and_questions(answers: Sequence[Answered]) -> Scores:
    """MultiRC's: F1a of the yes over all answers, and the share of questions answered whole."""
    from sklearn.metrics import f1_score

    right, said = _right_and_said(answers)
    f1a = f1_score(right, said, pos_label="yes", average="binary", zero_division=0.0)
    questions: dict[tuple[str, str], bool] = defaultdict(lambda: True)
    for one in answers:
        questions[one.example.unit] &= one.said == one.example.answer
    return {"f1a": float(f1a), "em": fmean(questions.values())}


def entities(answers: Sequence[Answered]) -> Scores:
    """ReCoRD's: F1 and exact match of each query's entity, the best over its right ones."""
    return {
        "f1": fmean(_best(token_f1, one) for one in answers),
        "em": fmean(_best(exact_match, one) for one in answers),
    }


def conversation(answers: Sequence[Answered]) -> Scores:
    """CoQA's: mean F1 and exact match over all turns, each against all its right answers."""
    return {
        "f1": fmean(among_several(token_f1, one.said, one.example.right) for one in answers),
        "em": fmean(among_several(exact_match, one.said, one.example.right) for one in answers),
    }


def summary(answers: Sequence[Answered]) -> Scores:
    """XSum's: mean ROUGE-1, ROUGE-2 and ROUGE-L F-measures."""
    rouge = Rouge("rouge1", "rouge2", "rougeL")
    scores = [rouge(one.said, _answer(one.example)) for one in answers]
    names = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}
    return {said: fmean(score[name] for score in scores) for name, said in names.items()}


def nouns(answers: Sequence[Answered]) -> Scores:
    """WSC's accuracy: whether the noun that was said is the record's, as the record says it is.

    They are the same if the words of one are among those of the other. What is said counts up to
    its first full stop, where the form ends.
    """
    return {"accuracy": fmean(_names_noun(one) == (one.example.label == "yes") for one in answers)}


def _names_noun(one: Answered) -> bool:
    said, noun = (set(normalised(text)) for text in (one.said.split(".")[0], *one.example.right))
    return bool(said) and (said <= noun or noun <= said)


def own(answers: Sequence[Answered]) -> Scores:
    """Accuracy where there are candidates; else exact match, F1 and ROUGE-L."""
    if all(one.example.candidates for one in answers):
        return accuracy(answers)
    rouge = summary(answers)
    return {**conversation(answers), "rouge_l": rouge["rouge_l"]}


def embedded_understanding(answers: Sequence[Answered]) -> Scores:
    """The share of answers that end in the right one of yes and no."""
    return {"understanding_accuracy": _mean(same_verdict, answers)}


def embedded_conversation(answers: Sequence[Answered]) -> Scores:
    """Mean F1 of the words, and the share of answers that are right as a whole."""
    return {
        "conversation_f1": _mean(token_f1, answers),
        "conversation_exact": _mean(exact_match, answers),
    }


def embedded_summary(answers: Sequence[Answered]) -> Scores:
    """Mean ROUGE-L F-measure."""
    rouge = Rouge("rougeL")
    return {"summary_rouge_l": _mean(lambda said, right: rouge(said, right)["rougeL"], answers)}


def embedded(answers: Sequence[Answered]) -> Scores:
    """Those of the embedded three, each over the answers of its kind."""
    found: Scores = {}
    for kind, score in _OF_KIND.items():
        if of_kind := [one for one in answers if one.example.label == kind.value]:
            found |= score(of_kind)
    return found


_OF_KIND: Final[dict[Kind, Score]] = {
    Kind.UNDERSTANDING: embedded_understanding,
    Kind.CONVERSATION: embedded_conversation,
    Kind.SUMMARY: embedded_summary,
}


def _mean(score: Callable[[str, str], float], answers: Sequence[Answered]) -> float:
    return fmean(score(one.said, _answer(one.example)) for one in answers)


def _best(score: Callable[[str, str], float], one: Answered) -> float:
    return max(score(one.said, right) for right in one.example.right)


def _answer(example: Example) -> str:
    assert example.answer is not None
    return example.answer


def _right_and_said(answers: Sequence[Answered]) -> tuple[list[str], list[str]]:
    return [_answer(one.example) for one in answers], [one.said for one in answers]
