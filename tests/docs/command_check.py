"""Whether commands that stand in the documentation exist, without running them."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from fedsea_mq.cli.__main__ import app
from fedsea_mq.settings import Settings
from tests.docs.pages import ROOT

_SEPARATORS = {"|", "||", "&&", ";", "&"}
_REDIRECTIONS = {"<", ">", ">>"}


def check_line(line: str) -> None:
    """Raises `AssertionError`, `ConfigError` or typer's `UsageError` for what does not exist."""
    for words in simple_commands(line):
        match words:
            case ["fedsea", *arguments]:
                check_fedsea(arguments)
            case ["make", *targets]:
                for target in targets:
                    assert "=" in target or _is_target(target), f"no target {target}"
            case ["python" | "python3" | ".venv/bin/python", *arguments]:
                _check_python(arguments)


def simple_commands(line: str) -> Iterator[list[str]]:
    """The commands of a line of shell, apart; without redirections and comments."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    tokens = iter(lexer)
    for token in tokens:
        if token in _SEPARATORS:
            yield words
            words = []
        elif token in _REDIRECTIONS:
            next(tokens)
        else:
            words.append(token)
    if words:
        yield words


def check_fedsea(arguments: Sequence[str]) -> None:
    """The command, its options and their values; its settings, and that their file is there."""
    command: Any = typer.main.get_command(app)
    rest = list(arguments)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    try:
        parsed = command.make_context("fedsea", rest)
    except (typer.Exit, SystemExit):  # --help and the like
        return
    assert not hasattr(command, "commands"), f"no command {arguments}"
    _check_settings(parsed.params)


def _check_settings(options: dict[str, Any]) -> None:
    if "set_" not in options:
        return
    file: Path | None = options.get("config")
    if file is not None and file.parts[0] == "configs":
        assert (ROOT / file).is_file(), f"no file {file}"
    here = file is not None and (ROOT / file).is_file()
    Settings.load(ROOT / str(file) if here else None, options["set_"] or [])


def _is_target(name: str) -> bool:
    return re.search(rf"^{re.escape(name)}:", (ROOT / "Makefile").read_text(), re.M) is not None


def _check_python(arguments: Sequence[str]) -> None:
    match arguments:
        case ["-m", module, *_]:
            assert importlib.util.find_spec(module) is not None, f"no module {module}"
        case [file, *_] if file.endswith(".py") and file.startswith("examples/"):
            assert (ROOT / file).is_file(), f"no file {file}"
