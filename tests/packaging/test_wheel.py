"""What is published: the wheel has all of it, and works where nothing else of the project is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PACKAGES = ("fedsea_mq", "broker", "nodes")


def run(*command: str | Path, cwd: Path, timeout: float = 1800) -> str:
    # Nothing of this checkout may stand in for what the wheel lacks.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheel` makes: the source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (only,) = dist.glob("*.whl")
    return only


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_packages(wheel: Path) -> None:
    ignored = {"__pycache__"}
    here = {
        # Followed: the configurations lie outside, and are linked to.
        (Path(folder) / name).relative_to(ROOT).as_posix()
        for package in PACKAGES
        for folder, _, names in os.walk(ROOT / package, followlinks=True)
        if not ignored & set(Path(folder).parts)
        for name in names
    }
    there = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(PACKAGES)}
    assert here - there == set()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_installed_wheel_runs_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    bin_ = tmp_path / "venv" / "bin"
    pins = tmp_path / "pins.txt"
    locked = (ROOT / "requirements.lock").read_text()
    pins.write_text("\n".join(re.findall(r"^[\w.-]+==[^\\\n]*", locked, re.M)))
    pip = (bin_ / "pip", "install", "--quiet", "--constraint", pins)
    run(*pip, f"torch=={torch.__version__}", cwd=tmp_path)
    run(*pip, f"{wheel}[gateway,otel]", cwd=tmp_path)
    # The rest is large: that there is a set of versions is enough.
    run(*pip, "--dry-run", f"{wheel}[gateway,otel,audit,gpu,ray]", cwd=tmp_path)
    said = json.loads(run(bin_ / "fedsea", "demo", "--json", cwd=tmp_path))
    assert all(client["text"] for client in said["clients"])
    run(bin_ / "fedsea", "configs", cwd=tmp_path)
    for file in (tmp_path / "configs").glob("*.yaml"):
        assert file.read_bytes() == (ROOT / "configs" / file.name).read_bytes()
    run(bin_ / "fedsea", "demo", "--config", "configs/demo.yaml", cwd=tmp_path)
