"""The three tasks as chats, and how answers to them are scored."""

from __future__ import annotations

import random

import pytest

from fedsea_mq.tasks.evaluation import TaskScores, evaluate, questions
from fedsea_mq.tasks.examples import Example, Message, Task, conversation, examples
from fedsea_mq.tasks.questions import every
from fedsea_mq.tasks.world import World


def taken(task: Task, seed: int = 3, count: int = 60) -> list[Example]:
    return list(examples(task, seed, count))


@pytest.mark.parametrize("task", list(Task))
def test_examples_are_the_same_for_the_same_seed_and_no_other(task: Task) -> None:
    assert taken(task) == taken(task)
    assert taken(task) != taken(task, seed=4)
    assert {example.task for example in taken(task)} == {task}


def test_the_first_turn_holds_the_passage_and_the_later_ones_do_not() -> None:
    for example in taken(Task.CONVERSATION):
        first, *rest = example.turns
        assert first.said.startswith("The story is: ")
        assert all(len(turn.said) < 80 and "\n" not in turn.said for turn in rest)


def test_understanding_is_answered_yes_about_as_often_as_no() -> None:
    answers = [example.turns[0].answer for example in taken(Task.UNDERSTANDING, count=400)]
    verdicts = [answer.rsplit(": ", 1)[-1] for answer in answers]
    assert set(verdicts) == {"yes", "no"}
    assert verdicts.count("yes") / 400 == pytest.approx(0.5, abs=0.1)


def test_a_summary_says_who_did_what_in_words_of_the_passage() -> None:
    for example in taken(Task.SUMMARY):
        ((said, answer),) = [(turn.said, turn.answer) for turn in example.turns]
        assert answer.endswith(".")
        names = [word.strip(",.") for word in answer.split() if word[0].isupper()]
        assert len(names) >= 3
        assert all(name in said for name in names)


def test_a_conversation_never_asks_the_same_twice_and_answers_are_right() -> None:
    world, rng = World(2), random.Random(2)
    for _ in range(40):
        story = world.story()
        turns = conversation(rng, story, turns=6).turns
        right = {(text, q.answer) for q in every(story) for text in (q.named, q.pronoun)}
        asked = [turn.said.rsplit("My question is: ", 1)[-1] for turn in turns]
        assert all((said, turn.answer) in right for said, turn in zip(asked, turns, strict=True))
        assert len(turns) == 6


def test_the_chat_of_a_turn_holds_the_right_answers_before_it() -> None:
    example = taken(Task.CONVERSATION)[0]
    messages = example.messages(2)
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2 + ["user"]
    assert messages[1]["content"] == example.turns[0].answer
    assert messages[-1]["content"] == example.turns[2].said


def right_answers(seed: int, count: int) -> dict[str, str]:
    """Whatever is asked, by the last thing said and all before it."""
    return {
        str(example.messages(turn)): example.turns[turn].answer
        for task in Task
        for example in examples(task, seed, count)
        for turn in range(len(example.turns))
    }


async def test_given_right_answers_then_every_score_is_one() -> None:
    right, asked = right_answers(5, 8), 0

    async def answer(messages: list[Message]) -> str:
        return right[str(messages)]

    def count() -> None:
        nonlocal asked
        asked += 1

    scores = await evaluate(answer, examples_a_task=8, seed=5, on_answer=count)
    assert scores == TaskScores(1.0, 1.0, 1.0, 1.0)
    assert asked == questions(8, 5) == 8 + 8 + 8 * 4


async def test_given_silence_then_every_score_is_nought() -> None:
    async def answer(_: list[Message]) -> str:
        return ""

    assert await evaluate(answer, examples_a_task=4, seed=5) == TaskScores(0.0, 0.0, 0.0, 0.0)


def test_points_below_is_the_largest_loss_of_any_task() -> None:
    before, after = TaskScores(0.9, 0.8, 0.6, 0.7), TaskScores(0.95, 0.5, 0.1, 0.6)
    assert after.points_below(before) == pytest.approx(30)
    assert before.points_below(after) == pytest.approx(5)


def test_two_questions_of_two_hundred_are_exactly_a_point() -> None:
    before, after = TaskScores(199 / 200, 1, 1, 1), TaskScores(197 / 200, 1, 1, 1)
    assert after.points_below(before) == 1.0
