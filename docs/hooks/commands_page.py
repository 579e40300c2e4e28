"""The reference of the `fedsea` command, from the command itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import typer

from fedsea_mq.cli.__main__ import app

_INTRODUCTION = """# Commands

Every command and option of `fedsea`, from the command itself. `fedsea COMMAND --help` says the
same. Exit status: 0 done, 1 it could not be done, 2 a setting or option is wrong, 130 interrupted.
"""


def commands_page() -> str:
    """The page, as Markdown."""
    root = typer.main.get_command(app)
    return "\n".join([_INTRODUCTION, *_described("fedsea", root)])


def _described(name: str, command: Any) -> Iterator[str]:
    context = command.context_class(command, info_name=name)
    level = "#" * (1 + len(name.split()))
    yield f"{level} {name}\n\n{inspect.cleandoc(command.help or '')}\n"
    subcommands = getattr(command, "commands", {})
    if not subcommands:
        yield f"```text\n{name} {' '.join(command.collect_usage_pieces(context))}\n```\n"
    said = [one.get_help_record(context) for one in command.params if one.name != "help"]
    yield from _table([record for record in said if record is not None])
    for inner, subcommand in sorted(subcommands.items()):
        yield from _described(f"{name} {inner}", subcommand)


def _table(records: Sequence[tuple[str, str]]) -> Iterator[str]:
    if records:
        yield "| option | |\n|---|---|"
        for option, meaning in records:
            yield f"| <code>{_cell(option)}</code> | {_cell(meaning)} |"
        yield ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
