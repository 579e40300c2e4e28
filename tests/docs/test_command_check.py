"""What is wrong with a command in the documentation is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.command_check import check_line, simple_commands
from tests.docs.pages import blocks


@pytest.mark.parametrize(
    "line",
    [
        "fedsea nowhere",
        "fedsea trust nowhere",
        "fedsea up --nowhere",
        "fedsea eval --n many",
        "fedsea up --config configs/nowhere.yaml",
        "fedsea up --set trunk.nods=3",
        "true && fedsea nowhere | cat",
        "for name in a b; do\n  fedsea nowhere\ndone",
        "make nowhere",
        "python examples/nowhere.py",
        "python -m nowhere",
        "pip install 'fedsea_mq[nowhere]'",
    ],
)
def test_what_does_not_exist_is_refused(line: str) -> None:
    with pytest.raises(Exception, match=r"nowhere|nods|integer"):
        check_line(line)


def test_commands_end_where_bash_ends_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- test: slow\ncp a b\n-->\n```sh\n# first\ncurl x -d '{\n  \"a\": 1}'\n"
        "for name in a b; do\n  echo $name  # each\ndone\nfedsea up \\\n  --config c\n```\n"
    )
    (block,) = blocks(page)
    assert block.before == ("cp a b",)
    assert [command.split()[0] for command in block.commands] == ["curl", "for", "fedsea"]
    assert list(simple_commands(block.commands[-1])) == [["fedsea", "up", "--config", "c"]]


def test_a_block_that_is_only_parsed_says_why(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- test: parsed -->\n```sh\nmake\n```\n")
    (block,) = blocks(page)
    with pytest.raises(ValueError, match="why"):
        _ = block.mark
