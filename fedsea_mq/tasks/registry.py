"""Tasks by name: what `fedsea eval` and training are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedsea_mq.errors import ConfigError
from fedsea_mq.tasks import coqa, own, scores, superglue, xsum
from fedsea_mq.tasks.dialogues import Kind
from fedsea_mq.tasks.embedded import MixedSource, WorldSource
from fedsea_mq.tasks.files import Hub, RecordSource
from fedsea_mq.tasks.records import Fields, Read, reading
from fedsea_mq.tasks.task import Example, Limits, Score, Task

_JSONL: Final = "jsonl:"
_CHOSEN: Final = Limits()
_SENTENCE: Final = Limits(answer_tokens=64)


@dataclass(frozen=True, slots=True)
class _Published:
    """A published task: where it is on the hub, how it is read and scored."""

    hub: Hub
    read: Read
    score: Score
    limits: Limits = _CHOSEN


def _record(fields: Fields) -> list[Example]:
    """ReCoRD in either layout."""
    layout = superglue.ReCoRDPassage if "qas" in fields else superglue.ReCoRD
    return reading(layout)(fields)


def _superglue(name: str, read: Read, score: Score) -> tuple[str, _Published]:
    return f"superglue/{name}", _Published(Hub("aps/super_glue", name), read, score)


_PUBLISHED: Final = dict(
    (
        _superglue("boolq", reading(superglue.BoolQ), scores.accuracy),
        _superglue("cb", reading(superglue.CB), scores.macro_f1),
        _superglue("copa", reading(superglue.COPA), scores.accuracy),
        _superglue("multirc", reading(superglue.MultiRC), scores.answers_and_questions),
        _superglue("record", _record, scores.entities),
        _superglue("rte", reading(superglue.RTE), scores.accuracy),
        _superglue("wic", reading(superglue.WiC), scores.accuracy),
        _superglue("wsc", reading(superglue.WSC), scores.nouns),
        (
            "xsum",
            _Published(Hub("EdinburghNLP/xsum"), reading(xsum.Article), scores.summary, _SENTENCE),
        ),
        (
            "coqa",
            _Published(
                Hub("stanfordnlp/coqa"), reading(coqa.Story), scores.conversation, _SENTENCE
            ),
        ),
    )
)

_EMBEDDED: Final[dict[str, tuple[Kind, Callable[..., dict[str, float]]]]] = {
    "embedded/understanding": (Kind.UNDERSTANDING, scores.embedded_understanding),
    "embedded/conversation": (Kind.CONVERSATION, scores.embedded_conversation),
    "embedded/summary": (Kind.SUMMARY, scores.embedded_summary),
}
_ALL_EMBEDDED: Final = "embedded"
NAMES: Final = (*_PUBLISHED, *_EMBEDDED, _ALL_EMBEDDED, f"{_JSONL}PATH")


def embedded_tasks() -> list[Task]:
    """The embedded three."""
    return [find(name) for name in _EMBEDDED]


def find(name: str, data: str | None = None) -> Task:
    """The task of that name, its records from `data`: a file, a folder or a hub id.

    Without `data` a published task comes from the hub.

    Raises:
        ConfigError: no task of that name, or data for one that has its own.
    """
    if name in _PUBLISHED:
        found = _PUBLISHED[name]
        source = RecordSource(found.read, _where(found.hub, data))
        return Task(name, source, found.score, found.limits)
    if data is not None:
        raise ConfigError(f"task {name!r} takes no data; those that do: {', '.join(_PUBLISHED)}")
    if name in _EMBEDDED:
        kind, score = _EMBEDDED[name]
        return Task(name, WorldSource(kind), score, _SENTENCE)
    if name == _ALL_EMBEDDED:
        kinds = tuple(kind for kind, _ in _EMBEDDED.values())
        return Task(name, MixedSource(kinds), scores.embedded, _SENTENCE)
    path = name.removeprefix(_JSONL)
    if path and path != name:
        source = RecordSource(reading(own.Own), Path(path).expanduser())
        return Task(name, source, scores.own, _SENTENCE)
    raise ConfigError(f"task {name!r}: expected one of {', '.join(NAMES)}")


def _where(hub: Hub, data: str | None) -> Path | Hub:
    if data is None:
        return hub
    path = Path(data).expanduser()
    is_hub_id = (
        not path.exists() and not path.suffix and data.count("/") == 1 and data[0] not in "./~"
    )
    return Hub(data, hub.config) if is_hub_id else path
