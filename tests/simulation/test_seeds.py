"""Systems under simulated faults keep their promises, and a seed says all that happens."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys

import pytest

from fedsea_mq.cli.chaos.seeds import simulate_all
from fedsea_mq.cli.chaos.simulated import simulate
from fedsea_mq.simulation.chain_model import ChainModel

SEEDS = 40
_DIGESTS = """
import hashlib
from fedsea_mq.cli.chaos.simulated import simulate
for seed in (1, 4, 9):
    print(hashlib.sha256("\\n".join(simulate(seed, trace=True).lines).encode()).hexdigest())
"""


def test_nothing_breaks_under_faults() -> None:
    outcomes = list(simulate_all(range(SEEDS), 1))
    assert [(one.seed, one.violations) for one in outcomes if one.violations] == []
    assert [one.seed for one in outcomes] == list(range(SEEDS))


@pytest.mark.slow
def test_nothing_breaks_in_many_seeds() -> None:
    assert [one for one in simulate_all(range(10_000), os.cpu_count() or 1) if one.violations] == []


def test_a_seed_is_the_same_in_every_process() -> None:
    logging.disable(logging.NOTSET)  # what is logged is part of it
    other = subprocess.run(
        [sys.executable, "-c", _DIGESTS],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "4711"},
    )
    here = [
        hashlib.sha256("\n".join(simulate(seed, trace=True).lines).encode()).hexdigest()
        for seed in (1, 4, 9)
    ]
    assert other.stdout.split() == here


def test_faults_happen_and_are_recovered_from() -> None:
    """The seeds are no idle talk: what they simulate is in the traces of a few of them."""
    lines = "\n".join(line for seed in range(12) for line in simulate(seed, trace=True).lines)
    for sign in ("FAULT: kill", "LOST", "-> again", "rewinds", "SessionUnknown", "started again"):
        assert sign in lines, sign


def test_outputs_of_other_states_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle is computed apart from what the parties compute."""
    trunk = ChainModel.trunk
    monkeypatch.setattr(
        ChainModel, "trunk", lambda model, states, spans: trunk(model, states + 1, spans)
    )
    assert any("wrong output" in what for what in simulate(1).violations)
