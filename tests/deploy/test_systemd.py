"""The units: systemd takes them, confines what they start, and what they start exists."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from fedsea_mq.cli.__main__ import app
from fedsea_mq.settings import Settings
from tests.docs.command_check import check_fedsea

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
# systemd's own scale, 0 to 100: the less, the more confined.
MOST_EXPOSED = 20

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed"
)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as they would be installed, where `fedsea` is this environment's."""
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    command = str(Path(sys.executable).parent / "fedsea")
    for unit in tmp_path.glob("*.service"):
        unit.write_text(unit.read_text().replace("/opt/fedsea/bin/fedsea", command))
    return tmp_path


def analyzed(*arguments: str) -> str:
    done = subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@needs_systemd
def test_systemd_takes_all_units_without_a_warning(installed: Path) -> None:
    assert analyzed("verify", *map(str, installed.glob("*.service"))) == ""


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_is_confined(unit: Path, installed: Path) -> None:
    threshold = f"--threshold={MOST_EXPOSED}"
    analyzed("security", "--offline=true", threshold, str(installed / unit.name))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_what_a_unit_starts_exists(unit: Path) -> None:
    started = re.search(r"^ExecStart=/opt/fedsea/bin/fedsea (.*)$", unit.read_text(), re.M)
    assert started is not None
    words = re.sub(r"%[tSCl]", "rack-3", started[1]).split()
    if words[0] not in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        pytest.skip(f"no command {words[0]} in this version")
    check_fedsea(words)


def test_a_trunk_node_has_longer_to_stop_than_to_drain() -> None:
    unit = (FOLDER / "fedsea-trunk.service").read_text()
    stop_s = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.M)
    assert stop_s is not None
    assert int(stop_s[1]) > Settings().trunk.drain_s + 10
