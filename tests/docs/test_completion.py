"""Completion: bash by bash itself, zsh by the command that its function runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

# What bash does when Tab is pressed after the words.
_BASH = """
eval "$(fedsea --show-completion)"
COMP_WORDS=({words}) COMP_CWORD={at}
_fedsea_completion fedsea
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
CASES = [("lo", "loadtest"), ("eval --sp", "--split"), ("trust ", "remove")]


def run(*command: str, **environment: str) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("typed", "offered"), CASES)
def test_bash_completes_with_what_the_command_shows_it(typed: str, offered: str) -> None:
    words = ["fedsea", *typed.split(" ")]
    quoted = " ".join(f"'{word}'" for word in words)
    assert offered in run("bash", "-c", _BASH.format(words=quoted, at=len(words) - 1)).split()


@pytest.mark.parametrize(("typed", "offered"), CASES)
def test_zsh_is_given_a_function_and_answered(typed: str, offered: str) -> None:
    function = run("fedsea", _FEDSEA_COMPLETE="source_zsh")
    assert function.strip().startswith("#compdef fedsea")
    assert "_FEDSEA_COMPLETE=complete_zsh" in function
    answer = run("fedsea", _FEDSEA_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS=f"fedsea {typed}")
    assert answer.startswith("_arguments")
    assert f'"{offered}"' in answer
