"""What goes wrong where files are written, as an error of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from fedsea_mq.errors import CheckpointError


@contextmanager
def told_if_unwritable(path: Path) -> Iterator[None]:
    """Say of `path` that it cannot be written, and why.

    Raises:
        CheckpointError: the disk is full, nothing may be written there, and the like.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from error
