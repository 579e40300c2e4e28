"""Which adapters of parts belong together: a digest of the whole, in a file beside each part's.

Names are chosen by whoever configures a party, so equal names prove nothing; and a trunk's adapter
says nothing of the head's. So each part's folder says which set it is of, and the parties compare
that. A folder that says nothing is a set by itself: two that hold the same adapter of the whole
model fit each other as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsea_mq.errors import AdapterError
from fedsea_mq.model.lora import LoraSettings
from fedsea_mq.protocol.bounded import Digest

STAMP: Final = "fedsea_adapter.json"
_MAX_STAMP_BYTES: Final = 1 << 16
_Block = Annotated[int, Field(strict=True, ge=0, lt=1 << 16)]


@dataclass(frozen=True, slots=True)
class AdapterSet:
    """The adapter of a whole model: its digest, 64 hex digits, and the blocks that it is for."""

    digest: str
    blocks: frozenset[int]

    def check_within(self, total: int) -> None:
        """Raise `AdapterError` for an adapter of blocks that a model of `total` blocks has not."""
        if beyond := sorted(block for block in self.blocks if block >= total):
            raise AdapterError(f"an adapter for block {beyond[0]} of a model of {total} blocks")


class _Stamp(BaseModel):
    """What the file says: the set, and of which tensors it says so."""

    model_config = ConfigDict(extra="forbid")

    set: Digest
    blocks: Annotated[list[_Block], Field(min_length=1, max_length=1024)]
    own: Digest


def content_digest(settings: LoraSettings, tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 of what an adapter computes, in hex: its scaling, names, shapes and fp32 values.

    In whatever dtype it is stored: what is rewritten in fp32 has the same digest.
    """
    digest = sha256(json.dumps([settings.scaling, settings.dora]).encode())
    for name, tensor in tensors:
        values = tensor.detach().float().cpu().contiguous()
        digest.update(f"\n{name} {list(values.shape)}\n".encode())
        digest.update(values.numpy().data)
    return digest.hexdigest()


def read_stamp(folder: Path, own_digest: str) -> AdapterSet | None:
    """The set that a folder with this content is of; None if it says nothing.

    Raises:
        AdapterError: damaged, or of other content: the adapter was changed since.
    """
    file = folder / STAMP
    try:
        if file.stat().st_size > _MAX_STAMP_BYTES:
            raise AdapterError(f"{file}: larger than {_MAX_STAMP_BYTES} bytes")
        stamp = _Stamp.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise AdapterError(f"{file}: does not say which set the adapter is of") from error
    if stamp.own != own_digest:
        raise AdapterError(f"{folder}: changed since it was made part of set {stamp.set[:12]}")
    return AdapterSet(stamp.set, frozenset(stamp.blocks))


def write_stamp(folder: Path, of: AdapterSet, own_digest: str) -> None:
    """Say that the folder's adapter, which has this digest, is part of a set."""
    stamp = _Stamp(set=of.digest, blocks=sorted(of.blocks), own=own_digest)
    (folder / STAMP).write_text(stamp.model_dump_json(indent=1) + "\n")
