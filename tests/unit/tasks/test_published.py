"""Published tasks: the paper's forms, from the official layout and from the hub's rows."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from fedsea_mq.errors import TaskDataError
from fedsea_mq.tasks.files import RecordSource
from fedsea_mq.tasks.records import Fields
from fedsea_mq.tasks.registry import find
from fedsea_mq.tasks.task import Example

YES_NO = ("no", "yes")


def read(name: str, fields: Fields) -> list[Example]:
    source = find(name).source
    assert isinstance(source, RecordSource)
    return source.read(fields)


def without_place(examples: list[Example]) -> list[tuple[object, ...]]:
    return [(one.prompt, one.answer, one.candidates, one.references, one.label) for one in examples]


BOOLQ = {"passage": "Owls hunt at night", "question": "do owls sleep", "idx": 3, "label": True}
CB = {
    "premise": "Mara hoped that it would rain.",
    "hypothesis": "It rained.",
    "label": "neutral",
    "idx": 0,
}
RTE = {
    "premise": "The mill burned down in May.",
    "hypothesis": "A mill burned.",
    "label": "entailment",
    "idx": 1,
}
COPA = {
    "premise": "The jar fell.",
    "choice1": "It broke.",
    "choice2": "It sang.",
    "question": "effect",
    "label": 0,
    "idx": 0,
}
WIC = {
    "word": "bank",
    "sentence1": "She sat on the bank.",
    "sentence2": "The bank was shut.",
    "label": False,
    "idx": 0,
    "start1": 15,
    "version": 1.1,
}
WSC = {
    "text": "The fox saw the hen because it was hungry.",
    "target": {"span1_text": "The fox", "span1_index": 0, "span2_text": "it", "span2_index": 6},
    "label": True,
    "idx": 0,
}
MULTIRC = {
    "idx": 7,
    "version": 1.1,
    "passage": {
        "text": "Toban keeps bees. He sells honey.",
        "questions": [
            {
                "idx": 20,
                "question": "What does Toban keep?",
                "answers": [
                    {"idx": 90, "text": "Bees.", "label": 1},
                    {"idx": 91, "text": "Hens", "label": 0},
                ],
            },
            {
                "idx": 21,
                "question": "What does he sell?",
                "answers": [{"idx": 92, "text": "", "label": 0}],
            },
        ],
    },
}
RECORD = {
    "idx": 4,
    "source": "invented",
    "passage": {
        "text": "Mara Holt met Wick.\n@highlight\nHolt won",
        "entities": [{"start": 0, "end": 8}, {"start": 14, "end": 17}, {"start": 31, "end": 34}],
    },
    "qas": [
        {
            "idx": 40,
            "query": "The prize went to @placeholder",
            "answers": [
                {"start": 0, "end": 8, "text": "Mara Holt"},
                {"start": 31, "end": 34, "text": "Holt"},
            ],
        }
    ],
}
COQA = {
    "source": "invented",
    "id": "x",
    "story": "Ned has a red kite.",
    "questions": [
        {"input_text": "What has Ned?", "turn_id": 1},
        {"input_text": "Which colour?", "turn_id": 2},
    ],
    "answers": [
        {"input_text": "a kite", "turn_id": 1, "span_start": 0},
        {"input_text": "red", "turn_id": 2},
    ],
    "additional_answers": {"0": [{"input_text": "kite"}, {"input_text": "it is red"}]},
}
XSUM = {"document": "A long tale of bells.", "summary": "Bells rang.", "id": "1"}


@pytest.mark.parametrize(
    ("name", "fields", "text", "answer", "candidates"),
    [
        (
            "boolq",
            BOOLQ,
            "Owls hunt at night. Question: do owls sleep? Answer:",
            "yes",
            YES_NO,
        ),
        (
            "cb",
            CB,
            '"It rained"? [MASK], "Mara hoped that it would rain."',
            "maybe",
            ("yes", "no", "maybe"),
        ),
        ("rte", RTE, '"A mill burned"? [MASK] "The mill burned down in May."', "yes", YES_NO),
        (
            "copa",
            COPA,
            '"It broke" or "It sang"? The jar fell, so',
            "It broke.",
            ("It broke.", "It sang."),
        ),
        (
            "copa",
            {**COPA, "question": "cause", "label": 1},
            '"It broke" or "It sang"? The jar fell, because',
            "It sang.",
            ("It broke.", "It sang."),
        ),
        (
            "wic",
            WIC,
            '"She sat on the bank." / "The bank was shut." Similar sense of bank?',
            "no",
            YES_NO,
        ),
        (
            "wsc",
            WSC,
            "The fox saw the hen because *it* was hungry. The pronoun '*it*' refers to",
            "The fox",
            (),
        ),
    ],
)
def test_superglue_has_the_papers_forms(
    name: str, fields: Fields, text: str, answer: str, candidates: tuple[str, ...]
) -> None:
    (example,) = read(f"superglue/{name}", fields)
    assert example.prompt.text == text
    assert (example.answer, example.candidates) == (answer, candidates)


def test_multirc_asks_of_every_answer_and_groups_by_question() -> None:
    examples = read("superglue/multirc", MULTIRC)
    told = "Toban keeps bees. He sells honey. Question:"
    assert [example.prompt.text for example in examples] == [
        f"{told} What does Toban keep? Is it Bees?",
        f"{told} What does Toban keep? Is it Hens?",
        f"{told} What does he sell? Is it ?",
    ]
    assert [example.answer for example in examples] == ["yes", "no", "no"]
    assert [example.unit for example in examples] == [("7", "20"), ("7", "20"), ("7", "21")]


def test_record_asks_each_query_of_the_distinct_entities() -> None:
    (example,) = read("superglue/record", RECORD)
    told = "Mara Holt met Wick.\n- Holt won"
    assert example.prompt.text == f"{told} The prize went to [MASK]"
    assert example.candidates == ("Mara Holt.", "Wick.", "Holt.")
    assert (example.answer, example.references) == ("Mara Holt.", ("Mara Holt", "Holt"))
    assert example.unit == ("4", "40")


def test_a_wsc_record_with_the_wrong_noun_tells_nothing_to_learn() -> None:
    (example,) = read("superglue/wsc", {**WSC, "label": False})
    assert example.answer is None
    assert (example.right, example.label) == (("The fox",), "no")


def test_coqa_is_a_chat_with_the_right_answers_before_each_question() -> None:
    first, second = read("coqa", COQA)
    opening = "The story is Ned has a red kite. My question is What has Ned?"
    assert first.prompt.messages()[1:] == [{"role": "user", "content": opening}]
    assert second.prompt.messages()[1:] == [
        {"role": "user", "content": opening},
        {"role": "assistant", "content": "a kite"},
        {"role": "user", "content": "Which colour?"},
    ]
    assert second.prompt.messages()[0]["role"] == "system"
    assert (second.answer, second.references) == ("red", ("red", "it is red"))


def test_xsum_is_a_chat() -> None:
    (example,) = read("xsum", XSUM)
    system, user = example.prompt.messages()
    assert system["role"] == "system"
    assert user == {"role": "user", "content": "The passage is A long tale of bells."}
    assert example.answer == "Bells rang."


ROWS: list[tuple[str, Fields, list[Fields]]] = [
    ("superglue/boolq", BOOLQ, [{**BOOLQ, "label": 1}]),
    ("superglue/cb", CB, [{**CB, "label": 2}]),
    ("superglue/rte", RTE, [{**RTE, "label": 0}]),
    ("superglue/wic", WIC, [{**WIC, "label": 0}]),
    ("superglue/wsc", WSC, [{"text": WSC["text"], "label": 1, **WSC["target"]}]),  # type: ignore[dict-item]
    (
        "superglue/multirc",
        MULTIRC,
        [
            {
                "paragraph": MULTIRC["passage"]["text"],  # type: ignore[index]
                "question": asked["question"],
                "answer": answer["text"],
                "label": answer["label"],
                "idx": {"paragraph": 7, "question": asked["idx"], "answer": answer["idx"]},
            }
            for asked in MULTIRC["passage"]["questions"]  # type: ignore[index]
            for answer in asked["answers"]
        ],
    ),
    (
        "superglue/record",
        RECORD,
        [
            {
                "passage": RECORD["passage"]["text"],  # type: ignore[index]
                "query": "The prize went to @placeholder",
                "entities": ["Mara Holt", "Wick", "Holt"],
                "answers": ["Mara Holt", "Holt"],
                "idx": {"passage": 4, "query": 40},
            }
        ],
    ),
    (
        "coqa",
        {**COQA, "additional_answers": {}},
        [
            {
                "source": "invented",
                "story": COQA["story"],
                "questions": ["What has Ned?", "Which colour?"],
                "answers": {"input_text": ["a kite", "red"], "answer_start": [0, 0]},
            }
        ],
    ),
]


@pytest.mark.parametrize(("name", "official", "rows"), ROWS, ids=[row[0] for row in ROWS])
def test_rows_of_the_hub_make_the_examples_of_the_official_files(
    name: str, official: Fields, rows: list[Fields]
) -> None:
    found = [example for row in rows for example in read(name, row)]
    assert without_place(found) == without_place(read(name, official))
    if name == "superglue/multirc":
        assert [one.unit for one in found] == [one.unit for one in read(name, official)]


SECRET = "sesame"


def broken(fields: Fields, path: list[str | int], value: Any) -> Fields:
    copied: Any = copy.deepcopy(fields)
    inner = copied
    for step in path[:-1]:
        inner = inner[step]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    found: Fields = copied
    return found


@pytest.mark.parametrize(
    ("name", "fields", "path", "value", "told"),
    [
        ("superglue/boolq", BOOLQ, ["label"], None, "label: Field required"),
        ("superglue/boolq", BOOLQ, ["label"], -1, "label: "),  # as in files without labels
        ("superglue/boolq", BOOLQ, ["passage"], [SECRET], "passage: "),
        ("superglue/cb", CB, ["label"], SECRET, "label: expected one of entailment"),
        ("superglue/rte", RTE, ["label"], 2, "label: expected one of"),
        ("superglue/copa", COPA, ["question"], SECRET, "question: expected one of cause"),
        ("superglue/copa", COPA, ["choice2"], "  ", "choice2: expected text"),
        ("superglue/wic", WIC, ["word"], None, "word: Field required"),
        ("superglue/wsc", WSC, ["target", "span1_text"], 5, "span1_text"),
        (
            "superglue/multirc",
            MULTIRC,
            ["passage", "questions", 1, "answers", 0, "label"],
            SECRET,
            "passage.questions.1.answers.0.label: ",
        ),
        ("superglue/record", RECORD, ["qas", 0, "query"], SECRET, "@placeholder"),
        ("superglue/record", RECORD, ["passage", "entities", 1, "end"], 10**9, "entity 1"),
        ("superglue/record", RECORD, ["qas", 0, "answers"], [], "qas.0.answers: "),
        ("coqa", COQA, ["answers"], [{"input_text": SECRET}], "1 answers of answers to 2"),
        ("coqa", COQA, ["story"], None, "story: Field required"),
        ("xsum", XSUM, ["summary"], {SECRET: 1}, "summary: "),
    ],
)
def test_a_bad_record_is_refused_by_its_field_and_never_by_its_text(
    name: str, fields: Fields, path: list[str | int], value: Any, told: str
) -> None:
    with pytest.raises(TaskDataError) as refused:
        read(name, broken(fields, path, value))
    assert told in str(refused.value)
    assert SECRET not in str(refused.value)
