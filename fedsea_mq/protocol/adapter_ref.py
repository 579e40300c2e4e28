"""Which adapter a session wants, and which ones a node holds: a name and a digest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from fedsea_mq.errors import AdapterMismatch, AdapterUnknown
from fedsea_mq.protocol.bounded import BODY, Digest, Name

MAX_ADAPTERS: Final = 64


@dataclass(frozen=True, slots=True, config=BODY)
class AdapterRef:
    """An adapter as parties speak of it.

    `digest` is that of the whole set that the parts' adapters are of: a name is chosen by whoever
    configures a party, and may mean two things.
    """

    name: Name
    digest: Digest


def _distinct(held: list[AdapterRef]) -> list[AdapterRef]:
    if len({ref.name for ref in held}) < len(held):
        raise ValueError("an adapter name twice")
    return held


HeldAdapters = Annotated[
    list[AdapterRef], Field(max_length=MAX_ADAPTERS), AfterValidator(_distinct)
]


def check_held(asked: AdapterRef, held: Sequence[AdapterRef]) -> None:
    """Refuse what is not held, or what is held under this name but of another set.

    Raises:
        AdapterUnknown, AdapterMismatch: with the name, and the digests that came and are held.
    """
    if asked in held:
        return
    others = sorted({ref.digest[:12] for ref in held if ref.name == asked.name})
    if others:
        raise AdapterMismatch(
            f"adapter {asked.name}: the client's is of set {asked.digest[:12]}, "
            f"held: {', '.join(others[:8])}"
        )
    raise AdapterUnknown(f"no node of this model holds adapter {asked.name}")
