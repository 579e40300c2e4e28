"""Read a safetensors file's table of contents, and hash tensors without loading the file.

The `safetensors` library loads tensors but does not tell where their bytes lie; hashing needs that
to stream one tensor at a time whatever the file weighs.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fedsea_mq.errors import CheckpointError

_MAX_HEADER_BYTES = 100 << 20
_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as it lies on disk."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def digest(self) -> str:
        """SHA-256 of dtype, shape and stored bytes, in hex; streams, so memory stays flat."""
        digest = hashlib.sha256(f"{self.dtype}{list(self.shape)}".encode())
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            left = self.nbytes
            while left:
                chunk = stream.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise CheckpointError(f"{self.file}: ends inside tensor {self.name}")
                digest.update(chunk)
                left -= len(chunk)
        return digest.hexdigest()

    def read(self, part: tuple[slice, ...] | None = None) -> torch.Tensor:
        """The tensor, or a part of it, in its stored dtype; perhaps as a view of the file.

        Raises:
            CheckpointError: the file is damaged, or is gone.
        """
        try:
            with safe_open(self.file, framework="pt") as file:
                tensor: torch.Tensor = (
                    file.get_tensor(self.name) if part is None else file.get_slice(self.name)[part]
                )
                return tensor
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.file}: tensor {self.name} cannot be read") from error


def stored_tensors(file: Path) -> list[StoredTensor]:
    """The table of contents of a safetensors file.

    Raises:
        CheckpointError: the file is not a whole safetensors file.
    """
    try:
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > _MAX_HEADER_BYTES:
                raise CheckpointError(f"{file}: header declares {size} bytes")
            header = json.loads(stream.read(size))
        return [
            _entry(file, name, fields, 8 + size)
            for name, fields in header.items()
            if name != "__metadata__"
        ]
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: not a readable safetensors file") from error


def _entry(file: Path, name: str, fields: dict[str, Any], data_start: int) -> StoredTensor:
    begin, end = (int(n) for n in fields["data_offsets"])
    shape = tuple(int(n) for n in fields["shape"])
    return StoredTensor(name, file, str(fields["dtype"]), shape, data_start + begin, end - begin)
