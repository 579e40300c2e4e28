"""mkdocs hook: files of the repository that pages link to are pages of the site, too.

So a link has one form, which leads somewhere on the forge as on the site, network or none.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parents[2]
_SHOWN = ("configs", "examples", "deploy", "Dockerfile")
_PROJECT = {
    "README.md": "index.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "LICENSE": "project/licence.md",
}
_LANGUAGES = {
    ".yaml": "yaml",
    ".py": "python",
    ".service": "ini",
    ".conf": "ini",
    ".json": "json",
}
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)(?P<path>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?=\))")
# Where a page that is made of a file stands in the repository, by where it stands on the site.
_ORIGINS = {
    site: Path(name) for name, site in _PROJECT.items() if not (_ROOT / "docs" / site).exists()
}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add a page for each file, and one for each folder of them."""
    for name, site in _PROJECT.items():
        if site in _ORIGINS:
            text = (_ROOT / name).read_text()
            page = text if name.endswith(".md") else f"# Licence\n\n```text\n{text}```\n"
            files.append(File.generated(config, site, content=page))
    for name in _SHOWN:
        for path in (_ROOT / name, *sorted((_ROOT / name).rglob("*"))):
            if "__pycache__" in path.parts:
                continue
            text = _folder_page(path) if path.is_dir() else _file_page(path)
            files.append(File.generated(config, _site_path(path), content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links out of the documentation's folder into links to those pages."""
    site = page.file.src_uri
    origin = _ROOT / _ORIGINS.get(site, Path("docs") / site)

    def relinked(found: re.Match[str]) -> str:
        target = Path(posixpath.normpath(origin.parent / found["path"]))
        if not target.exists():
            return found[0]  # a page of the site alone, or an error that mkdocs will name
        there = posixpath.relpath(_site_path(target), posixpath.dirname(site) or ".")
        return there + (found["anchor"] or "")

    return _LINK.sub(relinked, markdown)


def _site_path(target: Path) -> str:
    """Where a file or folder of the repository stands on the site."""
    name = target.relative_to(_ROOT).as_posix()
    if name in _PROJECT:
        return _PROJECT[name]
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    return f"files/{name}/index.md" if target.is_dir() else f"files/{name}.md"


def _file_page(file: Path) -> str:
    language = _LANGUAGES.get(file.suffix, "text")
    return f"# {file.relative_to(_ROOT)}\n\n````{language}\n{file.read_text()}````\n"


def _folder_page(folder: Path) -> str:
    return f"# {folder.relative_to(_ROOT)}\n\n" + "\n".join(_entries(folder)) + "\n"


def _entries(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if path.name != "__pycache__":
            link = f"{path.name}/index.md" if path.is_dir() else f"{path.name}.md"
            yield f"- [{path.name}]({link})"
