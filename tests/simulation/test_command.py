"""`fedsea chaos`: what it says, and its exit status."""

from __future__ import annotations

import json
import logging

from typer.testing import CliRunner, Result

from fedsea_mq.cli.__main__ import app
from tests.simulation.mutations import QUICK

NEVER_ENDS = next(mutation for mutation in QUICK if mutation.name == "a lease never ends")


def chaos(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["chaos", "--only", "simulated", *arguments])


def test_where_nothing_breaks_it_says_what_was_simulated() -> None:
    done = chaos("--seeds", "3", "--first", "5", "--json")
    assert done.exit_code == 0
    said = json.loads(done.stdout)["simulated"]
    assert (said["seeds"], said["violations"], said["broken"]) == (3, 0, [])
    assert said["events"] > 1000


def test_a_seed_that_breaks_something_is_named_and_can_be_repeated() -> None:
    with NEVER_ENDS.applied():
        done = chaos("--seeds", "6")
        assert done.exit_code == 1
        assert "broke something" in done.stdout
        (line, *_) = [line for line in done.stdout.splitlines() if line.startswith("  seed ")]
        number, what = line.removeprefix("  seed ").split(": ", 1)
        assert f"fedsea chaos --seed {number}" in done.stdout
        again = chaos("--seed", number)
        assert again.exit_code == 1
        assert what in again.stdout.splitlines()
    assert chaos("--seed", number).exit_code == 0


def test_a_repeated_seed_tells_messages_faults_and_logs() -> None:
    logging.disable(logging.NOTSET)
    lines = chaos("--seed", "1").stdout
    for sign in ("EXTEND", "RESULT", "FAULT: ", "log: "):
        assert sign in lines, sign
