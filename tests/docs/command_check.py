"""Whether commands that stand in the documentation exist, without running them."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from fedsea_mq.cli.__main__ import app
from fedsea_mq.settings import Settings
from tests.docs.pages import ROOT

_SEPARATORS = "|&;()\n"
_REDIRECTIONS = "<>"
_KEYWORDS = {"do", "then", "else", "!"}


def check_line(line: str) -> None:
    """Raises `AssertionError`, `ConfigError` or typer's `UsageError` for what does not exist."""
    for words in simple_commands(line):
        match words:
            case ["fedsea", *arguments] if not any("$" in one for one in arguments):
                check_fedsea(arguments)
            case ["pip", "install", *wanted]:
                _check_extras(wanted)
            case ["make", *targets]:
                for target in targets:
                    assert "=" in target or _is_target(target), f"no target {target}"
            case ["python" | "python3" | ".venv/bin/python", *arguments]:
                _check_python(arguments)


def simple_commands(line: str) -> Iterator[list[str]]:
    """The commands of some shell, apart; without keywords, redirections and comments."""
    # A comment would take the line's end with it, which ends a command.
    source = re.sub(r"(?m)(?<!\S)#.*$", "", line.replace("\\\n", " "))
    lexer = shlex.shlex(source, posix=True, punctuation_chars=_SEPARATORS + _REDIRECTIONS)
    lexer.whitespace, lexer.whitespace_split = " \t", True
    words: list[str] = []
    tokens = iter(lexer)
    for token in tokens:
        if set(token) <= set(_SEPARATORS):
            yield words
            words = []
        elif set(token) <= set(_REDIRECTIONS):
            next(tokens)
        elif words or token not in _KEYWORDS:
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
    runs = not hasattr(command, "commands") or command.invoke_without_command
    assert runs, f"no command {arguments}"
    _check_settings(parsed.params)


def _check_settings(options: dict[str, Any]) -> None:
    if "set_" not in options:
        return
    file: Path | None = options.get("config")
    if file is not None and file.parts[0] == "configs":
        assert (ROOT / file).is_file(), f"no file {file}"
    here = file is not None and (ROOT / file).is_file()
    Settings.load(ROOT / str(file) if here else None, options["set_"] or [])


def _check_extras(wanted: Sequence[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for one in wanted:
        if found := re.fullmatch(r"fedsea_mq\[([\w,-]+)\]", one):
            assert set(found[1].split(",")) <= set(extras), f"no such extra: {one}"


def _is_target(name: str) -> bool:
    return re.search(rf"^{re.escape(name)}:", (ROOT / "Makefile").read_text(), re.M) is not None


def _check_python(arguments: Sequence[str]) -> None:
    match arguments:
        case ["-m", module, *_]:
            assert importlib.util.find_spec(module) is not None, f"no module {module}"
        case [file, *_] if file.endswith(".py") and file.startswith("examples/"):
            assert (ROOT / file).is_file(), f"no file {file}"
