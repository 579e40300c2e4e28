"""The adapters of the client's parts, and what each asks of the trunk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.held_adapters import HeldAdapter, hold_adapters, open_adapters
from fedsea_mq.model.partition import Cut, Part
from fedsea_mq.model.parts import Head, Tail
from fedsea_mq.protocol.adapter_ref import AdapterRef


@dataclass(frozen=True, slots=True)
class ClientAdapter:
    """What a session runs with.

    `name` is its name in head and tail; `trunk` what the trunk is asked for, if the set has
    anything there; `head` the digest of what changes the head's weights, empty if nothing does.
    """

    name: str | None = None
    trunk: AdapterRef | None = None
    head: str = ""


def load_adapters(
    folders: Mapping[str, Path], checkpoint: Checkpoint, cut: Cut, head: Head, tail: Tail
) -> dict[str, ClientAdapter]:
    """Put adapters into head and tail. Raises `AdapterError` if one does not fit."""
    opened = open_adapters(folders, checkpoint.blocks)
    digests = hold_adapters(head.run, opened)
    hold_adapters(tail.run, opened)
    trunk = cut.blocks(Part.TRUNK, checkpoint.blocks)
    return {
        name: ClientAdapter(name, _asked(name, one, trunk), digests[name])
        for name, one in opened.items()
    }


def _asked(name: str, adapter: HeldAdapter, trunk: range) -> AdapterRef | None:
    at_trunk = adapter.of.blocks.intersection(trunk)
    return AdapterRef(name, adapter.of.digest) if at_trunk else None
