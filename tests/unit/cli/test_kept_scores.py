"""Scores that are kept are found again, by the same settings and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsea_mq.cli.bench.kept_scores import KeptScores, Place
from fedsea_mq.errors import ConfigError
from fedsea_mq.settings import Settings

HERE, THERE = Place("1+1", 0, "alone", 0.5), Place("1+1", 1, "alone", 0.5)
SETTINGS = Settings()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "out" / "results.jsonl"


def test_what_was_kept_is_found_again(file: Path) -> None:
    kept = KeptScores(file, SETTINGS, 60)
    assert kept.find(HERE) is None
    kept.add(HERE, {"f1": 0.5})
    for one in (kept, KeptScores(file, SETTINGS, 60)):
        assert one.find(HERE) == {"f1": 0.5}
        assert one.find(THERE) is None


def test_other_settings_find_nothing_of_it_and_lose_nothing(file: Path) -> None:
    KeptScores(file, SETTINGS, 60).add(HERE, {"f1": 0.5})
    others = [(SETTINGS.replace(training={"batch_size": 3}), 60), (SETTINGS, 61)]
    for settings, count in others:
        one = KeptScores(file, settings, count)
        assert one.find(HERE) is None
        one.add(HERE, {"f1": 0.7})
    quieter = SETTINGS.replace(log={"level": "error"})
    assert KeptScores(file, quieter, 60).find(HERE) == {"f1": 0.5}


def test_a_line_that_was_not_written_whole_is_left_out(file: Path) -> None:
    KeptScores(file, SETTINGS, 60).add(HERE, {"f1": 0.5})
    with file.open("a") as lines:
        lines.write('{"of": "')
    kept = KeptScores(file, SETTINGS, 60)
    kept.add(THERE, {"f1": 0.6})
    again = KeptScores(file, SETTINGS, 60)
    assert (again.find(HERE), again.find(THERE)) == ({"f1": 0.5}, {"f1": 0.6})


@pytest.mark.parametrize("line", ["no JSON", "{}", "3", '{"of": "x", "scores": {}, "cut": "1+1"}'])
def test_a_file_of_something_else_is_refused(file: Path, line: str) -> None:
    file.parent.mkdir()
    file.write_text(line + "\n")
    with pytest.raises(ConfigError, match="line 1"):
        KeptScores(file, SETTINGS, 60)


def test_without_a_file_nothing_is_written(tmp_path: Path) -> None:
    kept = KeptScores(None, SETTINGS, 60)
    kept.add(HERE, {"f1": 0.5})
    assert kept.find(HERE) == {"f1": 0.5}
    assert list(tmp_path.iterdir()) == []
