"""Every command that the documentation shows exists, and is run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from fedsea_mq.model.lora import LoraSettings
from fedsea_mq.settings import Settings
from tests.adapters import make_adapter
from tests.docs.command_check import check_line
from tests.docs.pages import PAGES, ROOT, Block, Mark, blocks, every_block
from tests.docs.workplace import Workplace

BLOCKS = every_block()
SHELL = [block for block in BLOCKS if block.is_shell]


def place(block: Block) -> str:
    return block.place


@pytest.mark.parametrize("block", SHELL, ids=place)
def test_every_command_says_how_it_is_tested_and_exists(block: Block) -> None:
    assert block.mark is not None, (
        f"{block.place}: write `<!-- test: quick -->`, `slow` or `parsed, WHY` above; "
        "see tests/docs/pages.py"
    )
    for line in (*block.before, *block.commands):
        check_line(line)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=place)
def test_python_compiles(block: Block) -> None:
    compile(block.text, block.place, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=place)
def test_yaml_is_yaml_and_sections_are_valid(block: Block) -> None:
    said = yaml.safe_load(block.text)
    if isinstance(said, dict) and set(said) <= set(Settings.model_fields):
        Settings.load(None, []).replace(**said)


@pytest.mark.timeout(300)
def test_quick_commands_do_what_they_say(tmp_path: Path, subtests: pytest.Subtests) -> None:
    quick = [block for block in BLOCKS if block.mark is Mark.QUICK]
    with Workplace(tmp_path) as workplace:
        for block in quick:
            with subtests.test(block.place):
                workplace.run(block)


SLOW = [page for page in PAGES if any(block.mark is Mark.SLOW for block in blocks(page))]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", SLOW, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_from_its_top(page: Path, tmp_path: Path) -> None:
    with Workplace(tmp_path) as workplace:
        model = workplace.folder / "my-model"
        make_adapter(model, workplace.folder / "formal", LoraSettings(), blocks=range(6))
        for block in blocks(page):
            if block.mark in (Mark.QUICK, Mark.SLOW):
                workplace.run(block)
