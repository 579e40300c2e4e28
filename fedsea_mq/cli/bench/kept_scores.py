"""Scores that were found, a line each in a file, so that a run that was stopped goes on there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedsea_mq.errors import ConfigError
from fedsea_mq.settings import Settings
from fedsea_mq.tasks.task import Scores


@dataclass(frozen=True, slots=True)
class Place:
    """Which score it is: of an arm at a cut, seed and noise over the RMS."""

    cut: str
    seed: int
    arm: str
    scale: float


def digest_of(settings: Settings, of: Any) -> str:
    """Names what a result depends on: the settings, but for where parties are, and `of`.

    What is at its default is left out, so that a new setting finds what was kept before it.
    """
    named = settings.model_dump_json(exclude={"log", "security", "broker"}, exclude_defaults=True)
    return sha256((named + json.dumps(of)).encode()).hexdigest()[:16]


class KeptScores:
    """What is in `file`, if it is of the same settings; without a file, nothing is kept.

    `of` is what else the scores depend on. Raises `ConfigError` if the file cannot be read.
    """

    def __init__(self, file: Path | None, settings: Settings, of: Any) -> None:
        self._file = file
        self._key = digest_of(settings, of)
        self._found: dict[Place, Scores] = {}
        if file is not None and file.exists():
            self._read(file)

    def _read(self, file: Path) -> None:
        *lines, unfinished = file.read_text().split("\n")
        if unfinished:  # it was stopped in the middle of writing
            file.write_text("".join(f"{line}\n" for line in lines))
        for number, line in enumerate(lines, 1):
            try:
                kept = json.loads(line)
                of, scores = kept.pop("of"), kept.pop("scores")
                place = Place(**kept)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(f"{file}: line {number} is not a score") from error
            if of == self._key:
                self._found[place] = scores

    def find(self, place: Place) -> Scores | None:
        """The scores there, if they were found before."""
        return self._found.get(place)

    def of(self, place: Place) -> Scores:
        """The scores there, which were found. Raises `KeyError`."""
        return self._found[place]

    def add(self, place: Place, scores: Scores) -> None:
        """Keep scores."""
        self._found[place] = scores
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a") as lines:
                lines.write(json.dumps({"of": self._key, **asdict(place), "scores": scores}) + "\n")
