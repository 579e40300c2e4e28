"""How commands write JSON and tables."""

from __future__ import annotations

import json
import math

import pytest

from fedsea_mq.cli.output import console, json_text, print_table


def test_json_has_no_number_that_is_none() -> None:
    text = json_text({"a": [math.inf, (math.nan, 1.5)], "b": {"c": -math.inf}, "d": "NaN"})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    read = json.loads(text, parse_constant=refuse)
    assert read == {"a": [None, [None, 1.5]], "b": {"c": None}, "d": "NaN"}


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_number_is_in_one_line_however_narrow_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "width", width)
    columns = ["a cut", *(f"number {index}" for index in range(12))]
    row = ["a name of several words", *(str(10**index) for index in range(12))]
    print_table("numbers", columns, [row])
    shown = capsys.readouterr().out
    assert {str(10**index) for index in range(12)} <= set(shown.split())
    assert max(map(len, shown.splitlines())) <= width
    assert shown.count("numbers") == 1
    assert (shown.count("a name") > 1) is (width < 200)
    print_table("nothing", ["", ""], [])


def test_a_cell_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("[b]a[/c]", ["name"], [["[red]x[/nope]"]])
    assert "[red]x[/nope]" in capsys.readouterr().out
