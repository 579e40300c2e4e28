"""The reference of all settings, from the schema that reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedsea_mq.settings import Settings

_INTRODUCTION = """# Settings

Every key of a configuration file, from the schema that reads it. A file is YAML; `--set
section.key=value` overrides it. What the keys are for, and who reads them, is in
[Configure](../how-to/configure.md).
"""
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def settings_page() -> str:
    """The page, as Markdown."""
    return "\n".join([_INTRODUCTION, *_sections(Settings)])


def _sections(settings: type[BaseModel]) -> Iterator[str]:
    for name, field in settings.model_fields.items():
        section = _model(field)
        yield f"## {name}\n\n{(section.__doc__ or '').strip()}\n"
        yield "| key | type | default | |\n|---|---|---|---|"
        yield from (_row(key, one) for key, one in section.model_fields.items())
        yield ""


def _model(field: FieldInfo) -> type[BaseModel]:
    assert isinstance(field.annotation, type)
    assert issubclass(field.annotation, BaseModel)
    return field.annotation


def _row(key: str, field: FieldInfo) -> str:
    cells = (f"`{key}`", _type(field), _default(field), field.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {_number(getattr(rule, name))}"
        for rule in field.metadata
        for name, sign in _SIGNS.items()
        if getattr(rule, name, None) is not None
    ]
    return ", ".join([_type_name(field.annotation), *bounds])


def _type_name(annotation: Any) -> str:
    """A type as somebody who writes YAML would call it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    match origin:
        case None:
            said = _plain_type_name(annotation)
        case _ if origin is Annotated:
            said = _type_name(arguments[0])
        case _ if origin is Literal:
            said = " or ".join(f"`{value}`" for value in arguments)
        case _ if origin in (Union, UnionType):
            said = " or ".join(map(_type_name, arguments))
        case _ if origin is dict:
            said = f"map of names to {_type_name(arguments[1])}"
        case _:
            said = f"list of {_type_name(arguments[0])}"
    return said


def _plain_type_name(annotation: type[Any]) -> str:
    if issubclass(annotation, Enum):
        return " or ".join(f"`{one.value}`" for one in annotation)
    if issubclass(annotation, BaseModel):
        return "map of " + ", ".join(f"`{key}`" for key in annotation.model_fields)
    names = {str: "text", int: "integer", float: "number", bool: "`true` or `false`"}
    return {**names, NoneType: "null"}.get(annotation, annotation.__name__.lower())


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    return f"`{_plain(value)}`" if value not in ({}, ()) else "none"


def _plain(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case Enum():
            return str(value.value)
        case tuple():
            return "[" + ", ".join(map(_plain, value)) + "]"
        case _:
            return re.sub(r"\s+", " ", str(value))
