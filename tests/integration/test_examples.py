"""What the README sends people to: configurations that are valid and examples that run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedsea_mq.settings import Settings

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_configuration_is_valid_and_leaves_the_noise_at_its_default(file: Path) -> None:
    assert Settings.load(file).noise == Settings().noise


def test_the_page_on_configuration_names_every_key() -> None:
    page = (ROOT / "docs/how-to/configure.md").read_text()
    for section, keys in Settings().model_dump().items():
        _, _, rest = page.partition(f"\n## {section}\n")
        table, _, _ = rest.partition("\n## ")
        assert {key for key in keys if f"\n| `{key}` |" in table} == set(keys), section


def test_a_whole_system_runs_in_one_event_loop() -> None:
    done = subprocess.run(
        [sys.executable, "examples/embed.py"],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "tokens from trunk-" in done.stdout
