"""Records on disk or on the hub: rows with the place that each is from.

JSON is read line by line here, so that an error can name its line. Parquet files and the hub go
through `datasets`. What is local is read in place: no copy of anybody's text is left in a cache.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

from fedsea_mq.errors import TaskDataError
from fedsea_mq.tasks.records import Read
from fedsea_mq.tasks.task import Example, Split, Wanted

Row = tuple[str, Any]
_MAX_LINE_BYTES: Final = 16 << 20
_SUFFIXES: Final = (".jsonl", ".json", ".parquet")
# As the official files are named.
_STEMS: Final = {
    Split.TRAIN: ("train",),
    Split.VALIDATION: ("val", "validation", "dev"),
    Split.TEST: ("test",),
}


@dataclass(frozen=True, slots=True)
class Hub:
    """A data set on the hub: its id, and its configuration or `default`."""

    dataset: str
    config: str = "default"

    def rows(self, split: Split) -> Iterator[Row]:
        """The rows of a split, from the parquet files that the hub makes of every data set.

        Raises `TaskDataError` if they cannot be fetched.
        """
        import datasets

        branch = f"hf://datasets/{self.dataset}@refs%2Fconvert%2Fparquet"
        files = f"{branch}/{self.config}/{split.value}/*.parquet"
        try:
            table = datasets.load_dataset("parquet", data_files=files, split="train")
        except Exception as error:  # the hub client raises many unrelated types
            raise TaskDataError(
                f"{self.dataset} ({self.config}, {split}): cannot be fetched from the hub "
                f"({type(error).__name__}); name local files instead"
            ) from error
        return _numbered(f"{self.dataset} {split}", table)


@dataclass(frozen=True, slots=True)
class RecordSource:
    """A task's records in a local file or folder, or else on the hub.

    In a folder the files are named for their splits, as the official ones are; a single file is
    taken for whichever split is asked for.
    """

    read: Read
    data: Path | Hub

    def examples(self, wanted: Wanted) -> Iterator[Example]:
        """Every example of the split, or those of `count` units drawn at random, in file order.

        Raises:
            TaskDataError: names the file, the line and the field, never what stands there.
        """
        every = self._all(wanted.split)
        if wanted.count is None:
            return every
        return _drawn(list(every), wanted.count, wanted.seed)

    def _all(self, split: Split) -> Iterator[Example]:
        empty = True
        for number, (place, fields) in enumerate(self._rows(split)):
            for example in self._checked(place, fields):
                empty = False
                yield example if example.record else replace(example, record=str(number))
        if empty:
            raise TaskDataError(f"{self.data}: no examples")

    def _rows(self, split: Split) -> Iterator[Row]:
        if isinstance(self.data, Hub):
            return self.data.rows(split)
        return _file_rows(_file_of(self.data, split))

    def _checked(self, place: str, fields: Any) -> list[Example]:
        if not isinstance(fields, dict):
            raise TaskDataError(f"{place}: expected an object, found {type(fields).__name__}")
        try:
            return self.read(fields)
        except TaskDataError as error:
            raise TaskDataError(f"{place}: {error}") from None


def _drawn(every: list[Example], count: int, seed: int) -> Iterator[Example]:
    units = list(dict.fromkeys(example.unit for example in every))
    chosen = set(random.Random(seed).sample(units, min(count, len(units))))
    return (example for example in every if example.unit in chosen)


def _file_of(path: Path, split: Split) -> Path:
    if not path.is_dir():
        return path
    names = [f"{stem}{suffix}" for stem in _STEMS[split] for suffix in _SUFFIXES]
    found = [path / name for name in names if (path / name).is_file()]
    if len(found) != 1:
        raise TaskDataError(
            f"{path}: {len(found)} files of the {split} split; expected one of {', '.join(names)}"
        )
    return found[0]


def _file_rows(file: Path) -> Iterator[Row]:
    match file.suffix:
        case ".parquet":
            return _parquet_rows(file)
        case ".json":
            return _document_rows(file)
        case ".jsonl":
            return _line_rows(file)
    raise TaskDataError(f"{file}: expected a file that ends in {', '.join(_SUFFIXES)}")


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise TaskDataError(f"{file}: cannot be read: {error.strerror}") from error


def _line_rows(file: Path) -> Iterator[Row]:
    with _opened(file) as lines:
        number = 0
        while line := lines.readline(_MAX_LINE_BYTES):
            number += 1
            if len(line) == _MAX_LINE_BYTES:
                raise TaskDataError(f"{file}:{number}: longer than {_MAX_LINE_BYTES} bytes")
            if line.strip():
                yield f"{file}:{number}", _parsed(line, f"{file}:{number}")


def _document_rows(file: Path) -> Iterator[Row]:
    """The records of one JSON document: a list, or the list that is its `data`, as CoQA's is."""
    with _opened(file) as whole:
        document = _parsed(whole.read(), str(file))
    records = document.get("data") if isinstance(document, dict) else document
    if not isinstance(records, list):
        raise TaskDataError(f"{file}: expected a list of records, or one as `data`")
    return _numbered(f"{file} record", records)


def _parsed(text: bytes, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or not UTF-8
        raise TaskDataError(f"{place}: not JSON") from error


def _parquet_rows(file: Path) -> Iterator[Row]:
    import datasets

    _opened(file).close()
    try:
        # An iterable one is read in place: no copy is left in a cache.
        yield from _numbered(f"{file} row", datasets.IterableDataset.from_parquet(str(file)))
    except Exception as error:  # whatever the reader of the format raises
        raise TaskDataError(f"{file}: not a parquet file") from error


def _numbered(place: str, records: Any) -> Iterator[Row]:
    return ((f"{place} {number}", fields) for number, fields in enumerate(records, 1))
