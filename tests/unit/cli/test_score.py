"""What noise costs, in points."""

from __future__ import annotations

import pytest

from fedsea_mq.cli.score import Scored, embedded, largest_harmless, points_below, told_apart
from fedsea_mq.tasks.task import Scores


def scores(understanding: float, f1: float, exact: float, rouge: float) -> Scores:
    return {
        "understanding_accuracy": understanding,
        "conversation_f1": f1,
        "conversation_exact": exact,
        "summary_rouge_l": rouge,
    }


def test_points_below_is_the_largest_loss_of_any_task() -> None:
    before, after = scores(0.9, 0.8, 0.6, 0.7), scores(0.95, 0.5, 0.1, 0.6)
    assert points_below(after, before) == pytest.approx(30)
    assert points_below(before, after) == pytest.approx(5)


def test_two_questions_of_two_hundred_are_exactly_a_point() -> None:
    before, after = scores(199 / 200, 1, 1, 1), scores(197 / 200, 1, 1, 1)
    assert points_below(after, before) == 1.0


def test_the_largest_harmless_sigma_has_no_harmful_one_below_it() -> None:
    free = Scored(scores(1, 1, 1, 1), 0.0, 0.0, "1+1")
    noised = [
        Scored(scores(understanding, 1, 1, 1), sigma, sigma, "1+1")
        for sigma, understanding in ((0.3, 0.9), (0.1, 1.0), (0.2, 0.995), (0.4, 1.0))
    ]
    chosen = largest_harmless(free, noised, 1.0)
    assert chosen is not None
    assert chosen.sigma == 0.2
    assert largest_harmless(free, noised[:1], 1.0) is None


def test_a_dialogue_counts_once_with_all_its_turns() -> None:
    assert [(one.units, len(one.examples)) for one in embedded(8, 5)] == [(8, 8), (8, 32), (8, 8)]


def test_scores_of_two_tasks_by_one_name_are_both_there() -> None:
    first = {"accuracy": 0.5}
    both = first | told_apart(first, "superglue/rte", {"accuracy": 1.0, "macro_f1": 0.9})
    assert both == {"accuracy": 0.5, "superglue/rte accuracy": 1.0, "macro_f1": 0.9}
