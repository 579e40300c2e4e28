"""From the fields of a record to examples; what is wrong is told by field, never by text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Strict, ValidationError

from fedsea_mq.errors import TaskDataError
from fedsea_mq.tasks.task import Example

Fields = Mapping[str, Any]
Read = Callable[[Fields], list[Example]]

YES_NO: Final = ("no", "yes")


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("expected text, found none")
    return text.strip()


def class_label(*names: str) -> BeforeValidator:
    """A label by name, or by its number among `names` as data sets on the hub have it."""

    def named(label: object) -> object:
        if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(names):
            return names[label]
        if label not in names:
            raise ValueError(f"expected one of {', '.join(names)}")
        return label

    return BeforeValidator(named)


Text = Annotated[str, Strict(), AfterValidator(_not_blank)]
# Where the published data has blanks: an answer to be judged, a document, a question of a talk.
MaybeBlank = Annotated[str, Strict(), AfterValidator(str.strip)]


class Record(BaseModel):
    """The fields of a record that its task reads; others are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    def examples(self) -> Iterator[Example]:
        """What the record asks."""
        raise NotImplementedError


def reading(record: type[Record]) -> Read:
    """How records of one layout are read. Reading raises `TaskDataError`, naming the fields."""

    def read(fields: Fields) -> list[Example]:
        try:
            return list(record.model_validate(fields).examples())
        except ValidationError as error:
            raise TaskDataError(_wrong(error)) from None

    return read


def _wrong(error: ValidationError) -> str:
    """Which fields, and what was expected: never what they held."""
    items = error.errors(include_input=False, include_url=False, include_context=False)
    return "; ".join(
        ": ".join(filter(None, (_at(item["loc"]), _rule(item["msg"])))) for item in items
    )


def _at(location: tuple[int | str, ...]) -> str:
    """`passage.questions.0`; empty for a rule about the whole record."""
    return ".".join(map(str, location))


def _rule(message: str) -> str:
    return message.removeprefix("Value error, ")


def yes_or_no(label: bool) -> str:
    """The word for a truth value."""
    return YES_NO[label]


def ended(text: str, mark: str) -> str:
    """The text with exactly one `mark` at its end: data sets have it or not."""
    return f"{text.removesuffix(mark)}{mark}"
