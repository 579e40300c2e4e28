"""Tasks by name, over files in their layouts; what is wrong is told by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from fedsea_mq.errors import ConfigError, TaskDataError
from fedsea_mq.tasks.files import Hub, RecordSource
from fedsea_mq.tasks.registry import NAMES, find
from fedsea_mq.tasks.task import Example, Split, Wanted

SECRET = "sesame"


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"passage": f"Owl {number}.", "question": "Is it an owl?", "label": number % 2 == 0}
        for number in range(count)
    ]


def lines(file: Path, records: list[Any]) -> Path:
    file.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return file


def taken(name: str, data: Path | None, wanted: Wanted = Wanted()) -> list[Example]:  # noqa: B008
    return list(find(name, None if data is None else str(data)).source.examples(wanted))


def test_json_lines_a_json_document_and_parquet_hold_the_same_examples(tmp_path: Path) -> None:
    records = rows(5)
    document = tmp_path / "whole.json"
    document.write_text(json.dumps({"version": 1, "data": records}))
    parquet = tmp_path / "some.parquet"
    datasets.Dataset.from_list(records).to_parquet(str(parquet))
    found = taken("superglue/boolq", lines(tmp_path / "some.jsonl", records))
    assert len(found) == 5
    assert [one.record for one in found] == ["0", "1", "2", "3", "4"]
    assert taken("superglue/boolq", document) == found
    assert taken("superglue/boolq", parquet) == found


def test_in_a_folder_the_file_of_the_split_is_taken(tmp_path: Path) -> None:
    lines(tmp_path / "train.jsonl", rows(4))
    lines(tmp_path / "val.jsonl", rows(2))
    assert len(taken("superglue/boolq", tmp_path, Wanted(Split.TRAIN))) == 4
    assert len(taken("superglue/boolq", tmp_path)) == 2
    with pytest.raises(TaskDataError, match="0 files of the test split"):
        taken("superglue/boolq", tmp_path, Wanted(Split.TEST))
    lines(tmp_path / "validation.jsonl", rows(3))
    with pytest.raises(TaskDataError, match="2 files of the validation split"):
        taken("superglue/boolq", tmp_path)


def test_a_count_draws_whole_units_the_same_for_the_same_seed(tmp_path: Path) -> None:
    records = [
        {
            "idx": passage,
            "passage": {
                "text": "A tale.",
                "questions": [
                    {
                        "idx": question,
                        "question": "Why?",
                        "answers": [
                            {"idx": answer, "text": "So", "label": 0} for answer in range(3)
                        ],
                    }
                    for question in range(4)
                ],
            },
        }
        for passage in range(5)
    ]
    file = lines(tmp_path / "train.jsonl", records)
    every = taken("superglue/multirc", file)
    drawn = taken("superglue/multirc", file, Wanted(count=6, seed=1))
    assert (len(every), len(drawn)) == (60, 18)
    assert len({one.unit for one in drawn}) == 6
    assert drawn == [one for one in every if one in drawn]  # in file order
    assert drawn == taken("superglue/multirc", file, Wanted(count=6, seed=1))
    assert drawn != taken("superglue/multirc", file, Wanted(count=6, seed=2))
    assert taken("superglue/multirc", file, Wanted(count=99)) == every


def test_ones_own_lines_have_prompt_answer_and_candidates(tmp_path: Path) -> None:
    records = [
        {"prompt": "Two and two?", "answer": "four"},
        {"prompt": "Is it?", "answer": "no", "candidates": ["yes", "no"], "more": 1},
    ]
    free, chosen = taken(f"jsonl:{lines(tmp_path / 'own.jsonl', records)}", None)
    assert (free.prompt.text, free.answer, free.candidates) == ("Two and two?", "four", ())
    assert (chosen.answer, chosen.candidates, chosen.label) == ("no", ("yes", "no"), "no")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (json.dumps({"prompt": SECRET}), "answer: Field required"),
        (json.dumps({"prompt": " ", "answer": SECRET}), "prompt: expected text"),
        (json.dumps({"prompt": SECRET, "answer": 4}), "answer: "),
        (
            json.dumps({"prompt": "p", "answer": SECRET, "candidates": ["yes"]}),
            "the answer is not among the candidates",
        ),
        (json.dumps([SECRET]), "expected an object, found list"),
        (f'{{"prompt": "{SECRET}', "not JSON"),
        ('{"prompt": "\udcff"}', "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, line: str, told: str) -> None:
    file = tmp_path / "own.jsonl"
    good = json.dumps({"prompt": "p", "answer": "a"})
    file.write_bytes(f"{good}\n\n{line}\n".encode(errors="surrogateescape"))
    with pytest.raises(TaskDataError) as refused:
        taken(f"jsonl:{file}", None)
    assert str(refused.value).startswith(f"{file}:3: ")
    assert told in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("none.jsonl", None, "cannot be read"),
        ("empty.jsonl", b"", "no examples"),
        ("table.csv", b"a,b", "expected a file that ends in"),
        ("bad.parquet", b"PAR1 no", "not a parquet file"),
        ("bad.json", b"{}", "expected a list of records"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, content: bytes | None, told: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(TaskDataError, match=told):
        taken("superglue/boolq", file)


def test_data_is_a_path_or_a_hub_id_and_else_the_tasks_own_on_the_hub(tmp_path: Path) -> None:
    def where(data: str | None) -> Path | Hub:
        source = find("superglue/cb", data).source
        assert isinstance(source, RecordSource)
        return source.data

    assert where(None) == Hub("aps/super_glue", "cb")
    assert where("owner/name") == Hub("owner/name", "cb")
    assert where("folder/file.jsonl") == Path("folder/file.jsonl")
    assert where("./folder") == Path("folder")
    assert where(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["boolq", "superglue/", "jsonl:", "", "embedded/repeat"])
def test_an_unknown_task_is_told_the_names(name: str) -> None:
    with pytest.raises(ConfigError, match="expected one of superglue/boolq"):
        find(name)


def test_every_name_is_a_task_and_only_published_ones_take_data() -> None:
    for name in NAMES:
        assert find(name).name == name
    with pytest.raises(ConfigError, match="takes no data"):
        find("embedded/summary", "somewhere")
