"""The three tasks as chats."""

from __future__ import annotations

import random

import pytest

from fedsea_mq.tasks.dialogues import Dialogue, Kind, conversation, dialogues
from fedsea_mq.tasks.questions import every
from fedsea_mq.tasks.world import World


def taken(kind: Kind, seed: int = 3, count: int = 60) -> list[Dialogue]:
    return list(dialogues(kind, seed, count))


@pytest.mark.parametrize("kind", list(Kind))
def test_dialogues_are_the_same_for_the_same_seed_and_no_other(kind: Kind) -> None:
    assert taken(kind) == taken(kind)
    assert taken(kind) != taken(kind, seed=4)
    assert {dialogue.kind for dialogue in taken(kind)} == {kind}


def test_the_first_turn_holds_the_passage_and_the_later_ones_do_not() -> None:
    for dialogue in taken(Kind.CONVERSATION):
        first, *rest = dialogue.turns
        assert first.said.startswith("The story is: ")
        assert all(len(turn.said) < 80 and "\n" not in turn.said for turn in rest)


def test_understanding_is_answered_yes_about_as_often_as_no() -> None:
    answers = [dialogue.turns[0].answer for dialogue in taken(Kind.UNDERSTANDING, count=400)]
    verdicts = [answer.rsplit(": ", 1)[-1] for answer in answers]
    assert set(verdicts) == {"yes", "no"}
    assert verdicts.count("yes") / 400 == pytest.approx(0.5, abs=0.1)


def test_a_summary_says_who_did_what_in_words_of_the_passage() -> None:
    for dialogue in taken(Kind.SUMMARY):
        ((said, answer),) = [(turn.said, turn.answer) for turn in dialogue.turns]
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
    dialogue = taken(Kind.CONVERSATION)[0]
    messages = dialogue.prompt(2).messages()
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2 + ["user"]
    before = [text for turn in dialogue.turns[:2] for text in (turn.said, turn.answer)]
    assert [message["content"] for message in messages] == [*before, dialogue.turns[2].said]
