"""Examples asked of a model, and scored."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from transformers import PreTrainedTokenizerBase

from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.tasks.dialogues import Kind, dialogues
from fedsea_mq.tasks.evaluation import Responder, evaluate
from fedsea_mq.tasks.registry import embedded_tasks, find
from fedsea_mq.tasks.scores import accuracy
from fedsea_mq.tasks.task import Answered, Example, Limits, Prompt, Scores, Split, Wanted


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return Checkpoint.open("embedded").tokenizer


async def right(example: Example) -> str:
    assert example.answer is not None
    return example.answer


async def silence(_: Example) -> str:
    return ""


async def embedded(respond: object, count: int) -> Scores:
    scores: Scores = {}
    for task in embedded_tasks():
        examples = list(task.source.examples(Wanted(count=count, seed=5)))
        scores |= await evaluate(examples, task.score, respond)  # type: ignore[arg-type]
    return scores


async def test_right_answers_score_one_and_silence_nought_in_the_embedded_three() -> None:
    names = [
        "understanding_accuracy",
        "conversation_f1",
        "conversation_exact",
        "summary_rouge_l",
    ]
    assert await embedded(right, 8) == dict.fromkeys(names, 1.0)
    assert await embedded(silence, 4) == dict.fromkeys(names, 0.0)


def test_embedded_examples_are_the_chats_of_the_dialogues_in_held_out_worlds() -> None:
    for task, kind in zip(
        embedded_tasks(), (Kind.UNDERSTANDING, Kind.CONVERSATION, Kind.SUMMARY), strict=True
    ):
        wanted = [
            (dialogue.prompt(turn).messages(), dialogue.turns[turn].answer)
            for dialogue in dialogues(kind, 5, 6)
            for turn in range(len(dialogue.turns))
        ]
        found = task.source.examples(Wanted(count=6, seed=5))
        assert [(one.prompt.messages(), one.answer) for one in found] == wanted
        learned = next(task.source.examples(Wanted(Split.TRAIN, seed=5)))
        assert learned.prompt.messages() != wanted[0][0]


async def test_answers_stay_with_their_examples_however_many_are_asked_at_once() -> None:
    examples = [
        Example(Prompt(str(number)), str(number % 3), ("0", "1", "2")) for number in range(50)
    ]
    asked: list[str] = []

    async def respond(example: Example) -> str:
        asked.append(example.prompt.passage)
        return str(int(example.prompt.passage) % 3)

    told = 0

    def count() -> None:
        nonlocal told
        told += 1

    scores = await evaluate(examples, accuracy, respond, at_once=7, on_answer=count)
    assert scores == {"accuracy": 1.0}
    assert sorted(asked, key=int) == [str(number) for number in range(50)]
    assert told == 50


class Parrot:
    """Finds longer continuations likelier, and says how many tokens it was given."""

    async def generate_text(self, prompt: Sequence[int], max_new_tokens: int) -> str:
        return f" {len(prompt)} {max_new_tokens}\n"

    async def log_likelihoods(
        self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> list[float]:
        return [-1.0 / len(continuation) for continuation in continuations]


async def test_the_likeliest_candidate_is_the_answer_and_without_any_what_is_said(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    respond = Responder(Parrot(), tokenizer, Limits(source_tokens=8, answer_tokens=5))
    candidates = ("no", "a long one that has more tokens", "yes")
    chosen = await respond(Example(Prompt("The fox."), "no", candidates))
    assert chosen == candidates[1]
    given, most = (await respond(Example(Prompt("word " * 50), "no"))).split()
    assert 0 < int(given) <= 8
    assert most == "5"


def test_limits_leave_room_for_the_answer() -> None:
    assert find("superglue/boolq").limits == Limits(700, 20)  # the paper's
    assert Limits(700, 20).within(2048) == Limits(700, 20)
    assert Limits(700, 20).within(128) == Limits(108, 20)


def test_the_embedded_three_in_one_have_their_kind_as_class_and_each_its_own_score() -> None:
    task = find("embedded")
    examples = list(task.source.examples(Wanted(count=4, seed=1)))
    assert {one.label for one in examples} == {"understanding", "conversation", "summary"}
    right = [Answered(one, str(one.answer)) for one in examples]
    wrong = [
        Answered(one, "nothing") if one.label == "conversation" else Answered(one, str(one.answer))
        for one in examples
    ]
    assert set(task.score(right).values()) == {1.0}
    assert task.score(wrong) == {
        **task.score(right),
        "conversation_f1": 0.0,
        "conversation_exact": 0.0,
    }
    alone = list(find("embedded/summary").source.examples(Wanted(count=4, seed=1)))
    of_kind = [one for one in examples if one.label == "summary"]
    assert [one.prompt for one in of_kind] == [one.prompt for one in alone]
