"""A scratch copy of what a reader has before them, where a page's commands are really run."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.docs.command_check import simple_commands
from tests.docs.pages import ROOT, Block
from tests.ports import free_port

# What a page may take for granted, beside the repository's own files.
PASSAGE = "Kewyn is a weaver. She lives in Marshmoor. Kewyn keeps a striped dog."
QUESTION = f"{PASSAGE}\\nWhere does Kewyn live?\n/quit\n"
_COPIED = ("configs", "deploy", "examples", "docs", "Makefile")
# These stay until the page, or another system, wants the ports.
_SERVERS = {"up", "broker", "trunk", "aggregator", "trainer", "gateway"}
_SYSTEMS = {"up", "broker"}
_PATIENCE_S = 60
# Ports and addresses that pages and configurations name, and that a test must not rely on.
_PORTS = ("7700", "7701", "7710", "8000", "9400")
_ADDRESSES = dict.fromkeys(("192.0.2.10", "192.0.2.11", "192.0.2.21", "0.0.0.0"), "127.0.0.1")


class Workplace:
    """A folder, and the processes that commands leave running. Use with `with`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._servers: dict[str, subprocess.Popen[str]] = {}
        self._stands_for = {port: str(free_port()) for port in _PORTS} | _ADDRESSES
        self._stands_for["/etc/fedsea"] = str(folder / "etc")
        # The library's own defaults are in no file.
        self._ports = [
            f"broker.clients=tcp://127.0.0.1:{self._stands_for['7700']}",
            f"broker.nodes=tcp://127.0.0.1:{self._stands_for['7701']}",
        ]

    def __enter__(self) -> Workplace:
        for name in _COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, self.folder / name)
            elif source.is_file():
                shutil.copy(source, self.folder / name)
        for file in (self.folder / "configs").glob("*.yaml"):
            file.write_text(self._here(file.read_text()))
        (self.folder / ".venv").symlink_to(sys.prefix)
        shutil.copytree(ROOT / "fedsea_mq/model/embedded", self.folder / "my-model")
        (self.folder / "passage.txt").write_text(PASSAGE)
        for name in ("my.yaml", "mine.yaml"):
            shutil.copy(self.folder / "configs/one-machine.yaml", self.folder / name)
        for name in ("mine.jsonl", "notes.jsonl", "north.jsonl"):
            self._write_lines(name, _task_lines())
        (self.folder / "MultiRC").mkdir()
        self._write_lines("MultiRC/val.jsonl", _multirc_records())
        return self

    def __exit__(self, *_: object) -> None:
        self._stop(list(self._servers))

    def run(self, block: Block) -> None:
        """Run what comes before a block, and the block. Raises `AssertionError` if one fails."""
        for line in (*block.before, *([] if block.language == "python" else block.commands)):
            self._run_line(line)
        if block.language == "python":
            ports = ", ".join(map(repr, self._ports))
            script = block.text.replace("Settings.load()", f"Settings.load(None, [{ports}])")
            self._finish([sys.executable, "-c", script])

    def _run_line(self, line: str) -> None:
        words = next(simple_commands(line), [])
        # They would install into the environment that this test runs in.
        assert words[:1] not in (["make"], ["pip"]), f"{line}: mark it as parsed"
        command = words[1] if words[:1] == ["fedsea"] and len(words) > 1 else None
        if command in _SERVERS:
            key = " ".join(words)
            self._stop([old for old in self._servers if _takes_ports_of(key, old)])
            self._serve(key, self._shell(line))
        elif command == "status" and not {"--once", "--json"} & set(words):
            self._watch(self._shell(line))
        else:
            self._finish(self._shell(line))

    def _shell(self, line: str) -> list[str]:
        """The line for bash, with ports and places of its own in place of those that it names."""
        line = self._here(line)
        sets = " ".join(f"--set {port}" for port in self._ports)
        takes_sets = "|".join(sorted(_commands_with_set()))
        line = re.sub(rf"\bfedsea ({takes_sets})(?=\s|$)", rf"fedsea \1 {sets}", line)
        return ["bash", "-euo", "pipefail", "-c", line]

    def _here(self, text: str) -> str:
        for named, real in self._stands_for.items():
            text = re.sub(rf"(?<![\w.]){re.escape(named)}(?![\w])", real, text)
        return text

    def _environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}

    def _popen(self, shell: list[str], **streams: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            shell, text=True, cwd=self.folder, env=self._environment(), start_new_session=True,
            **streams,
        )  # fmt: skip

    def _finish(self, shell: list[str]) -> None:
        process = self._popen(
            shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        said, _ = process.communicate(QUESTION)
        assert process.returncode == 0, f"{shell[-1]}\n{said}"

    def _serve(self, key: str, shell: list[str]) -> None:
        """Start a process that stays, and wait until it is ready; the same again is there."""
        running = self._servers.get(key)
        if running is not None and running.poll() is None:
            return
        errors = self.folder / "server.log"
        with errors.open("w") as log:
            process = self._popen(shell, stdout=subprocess.PIPE, stderr=log)
        self._servers[key] = process
        assert process.stdout is not None
        for line in process.stdout:
            if "ready" in line:
                return
        raise AssertionError(f"{key} ended before it was ready: {errors.read_text()}")

    def _watch(self, shell: list[str]) -> None:
        """Look at a live view on a terminal until it shows something, and press Ctrl-C."""
        ours, theirs = pty.openpty()
        process = self._popen(shell, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        try:
            seen = os.read(ours, 4096)
            process.send_signal(signal.SIGINT)
            assert process.wait(_PATIENCE_S) == 130, seen
        finally:
            os.close(ours)

    def _stop(self, keys: Iterable[str]) -> None:
        # The last ones first: each says goodbye to one that still listens.
        for key in reversed(list(keys)):
            process = self._servers.pop(key)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            process.communicate(timeout=_PATIENCE_S)

    def _write_lines(self, name: str, lines: Iterable[dict[str, Any]]) -> None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (self.folder / name).write_text(text)


def _commands_with_set() -> set[str]:
    """The commands of `fedsea` that take `--set`."""
    import typer

    from fedsea_mq.cli.__main__ import app

    group: Any = typer.main.get_command(app)
    return {
        name
        for name, command in group.commands.items()
        if any("--set" in option.opts for option in command.params)
    }


def _takes_ports_of(new: str, old: str) -> bool:
    """Whether a reader has to end one server before another: a whole system, or one gateway."""
    if new == old:
        return False
    commands = new.split()[1], old.split()[1]
    return commands[0] in _SYSTEMS or commands == ("gateway", "gateway")


def _task_lines() -> list[dict[str, str]]:
    names = ("Orla", "Pim", "Quill", "Rosa", "Sten", "Tove", "Ulf", "Vera")
    things = ("seven green kites", "a tin of salt", "the north gate", "two slow mules")
    return [
        {"prompt": f"{name} asked what was left. It was", "answer": thing}
        for name in names * 2
        for thing in things
    ]


def _multirc_records() -> list[dict[str, Any]]:
    answers = [{"idx": 0, "text": "Hens", "label": 0}, {"idx": 1, "text": "Bees", "label": 1}]
    question = {"idx": 0, "question": "What does Toban keep?", "answers": answers}
    passage = {"text": "Toban keeps bees.", "questions": [question]}
    return [{"idx": number, "passage": passage} for number in range(60)]
