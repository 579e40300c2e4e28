"""The site: it builds without a warning, fetches nothing, and leaves nothing undescribed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedsea_mq.settings import Settings
from tests.docs.pages import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_no_page_fetches_anything_from_another_host(site: Path) -> None:
    fetched = re.compile(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?https?:", re.I)
    for page in site.rglob("*.html"):
        html = page.read_text()
        assert fetched.search(html) is None, page
        # The theme would fetch what draws them.
        assert 'class="mermaid"' not in html, page


def test_every_how_to_is_in_the_navigation(site: Path) -> None:
    front = (site / "index.html").read_text()
    for page in (ROOT / "docs" / "how-to").glob("*.md"):
        assert f"how-to/{page.stem}.html" in front


def test_the_reference_has_every_key_option_and_public_class(site: Path) -> None:
    settings = (site / "reference/settings.html").read_text()
    for name, section in Settings.model_fields.items():
        assert f'id="{name}"' in settings
        for key, field in section.default.__class__.model_fields.items():
            assert f"<code>{key}</code>" in settings
            assert field.description, f"{name}.{key} has no line of documentation"
    commands = (site / "reference/commands.html").read_text()
    assert "fedsea bench serving" in commands
    assert "--max-new-tokens" in commands
    nodes = (site / "reference/python/nodes.html").read_text()
    for name in ("ClientNode", "TrunkNode", "AggregatorNode", "TrainingClient", "Broker"):
        assert name in nodes


def test_links_to_files_of_the_repository_are_pages_of_the_site(site: Path) -> None:
    page = (site / "how-to/use-your-own-model.html").read_text()
    assert 'href="../files/configs/llama-2-7b.yaml.html"' in page
    assert "meta-llama/Llama-2-7b-hf" in (site / "files/configs/llama-2-7b.yaml.html").read_text()
