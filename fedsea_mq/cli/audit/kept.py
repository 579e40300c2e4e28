"""What an audit found before it was stopped, a file each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from fedsea_mq.cli.bench.kept_scores import digest_of
from fedsea_mq.errors import ConfigError
from fedsea_mq.settings import Settings

# Of what is in a file: those of an older form are not found.
_FORM: Final = 4


class KeptFindings:
    """Findings as JSON in `folder`; without one nothing is kept.

    Each is found again for the same settings, but for where parties are, and the same `of`, which
    says what else it depends on.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def find(self, settings: Settings, of: Any) -> Any | None:
        """What was found, or None. Raises `ConfigError` if the file is damaged."""
        file = self._file(settings, of)
        if file is None or not file.exists():
            return None
        try:
            return json.loads(file.read_text())
        except ValueError as error:
            raise ConfigError(f"{file}: damaged; remove it to find it again") from error

    def add(self, settings: Settings, of: Any, found: Any) -> None:
        """Keep what was found."""
        file = self._file(settings, of)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_suffix(".new")
            unfinished.write_text(json.dumps(found, indent=1) + "\n")
            unfinished.replace(file)  # a run that is stopped leaves a whole file, or none

    def _file(self, settings: Settings, of: Any) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / f"{digest_of(settings, [_FORM, of])}.json"
