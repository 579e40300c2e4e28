"""mkdocs hook: each how-to is in the navigation, in the README's order, without being listed."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig

_ROOT = Path(__file__).parents[2]
_SECTION = "How to"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the section of the navigation that `mkdocs.yml` leaves empty."""
    for section in config.nav or []:
        if _SECTION in section:
            section[_SECTION] = how_to_pages()
    return config


def how_to_pages() -> list[str]:
    """Those that the README lists, as it does, then the others by name."""
    listed = re.findall(r"\(docs/(how-to/[\w-]+\.md)\)", (_ROOT / "README.md").read_text())
    # The list is at the README's end; links in its text above come in another order.
    last = {page: place for place, page in enumerate(listed)}
    there = sorted(f"how-to/{file.name}" for file in (_ROOT / "docs" / "how-to").glob("*.md"))
    return sorted(there, key=lambda page: last.get(page, len(listed)))
