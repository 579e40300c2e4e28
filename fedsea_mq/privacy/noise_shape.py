"""A file that says in which directions the noise lies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Final, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from fedsea_mq.errors import ConfigError

_NAME: Final = "root"
_TRACE_TOLERANCE: Final = 0.01
_ROUNDING: Final = 1e-5


@dataclass(frozen=True, eq=False)
class NoiseShape:
    """`root` `[hidden, hidden]`, fp32: the noise is std * (unit noise @ root).

    Its covariance is std^2 root^T root. The mean over directions of the variance is std^2, so
    sigma keeps its meaning. `digest` is of the file, in hex.
    """

    root: torch.Tensor
    digest: str

    @cached_property
    def smallest(self) -> float:
        """The noise's standard deviation over `std` in the direction that has the least of it.

        0 where that is less than what fp32 keeps of the product.
        """
        values = torch.linalg.svdvals(self.root.double())
        least, most = float(values.min()), float(values.max())
        return least if least > _ROUNDING * most else 0.0

    @classmethod
    def load(cls, file: Path, hidden: int) -> Self:
        """Read and check a file.

        Raises:
            ConfigError: not a safetensors file of the one tensor `root`, fp32 `[hidden, hidden]`,
                finite, with trace(root^T root) within 1 % of `hidden`.
        """
        try:
            content = file.read_bytes()
            tensors = load(content)
        except OSError as error:
            raise ConfigError(f"noise.shape {file}: cannot be read: {error.strerror}") from error
        except SafetensorError as error:
            raise ConfigError(f"noise.shape {file}: not a safetensors file") from error
        if set(tensors) != {_NAME}:
            raise ConfigError(f"noise.shape {file}: expected one tensor, named {_NAME}")
        try:
            check_root(tensors[_NAME], hidden)
        except ConfigError as error:
            raise ConfigError(f"noise.shape {file}: {error}") from None
        return cls(tensors[_NAME], blake2b(content, digest_size=32).hexdigest())


def check_root(root: torch.Tensor, hidden: int) -> None:
    """Whether noise may be multiplied by it.

    Raises:
        ConfigError: not fp32, not `[hidden, hidden]`, not finite, or of another mean variance.
    """
    if root.dtype != torch.float32 or tuple(root.shape) != (hidden, hidden):
        raise ConfigError(
            f"{_NAME}: expected float32 {[hidden, hidden]}, found "
            f"{str(root.dtype).removeprefix('torch.')} {list(root.shape)}"
        )
    variance = float(root.double().square().sum()) / hidden
    # Written so that what is not a number fails, too.
    if not abs(variance - 1) <= _TRACE_TOLERANCE:
        raise ConfigError(
            f"{_NAME}: the mean over directions of the variance must be 1 within 1 %, is "
            f"{variance:.4g}"
        )


def write_shape(file: Path, root: torch.Tensor) -> None:
    """Write what `NoiseShape.load` reads. Raises `ConfigError` where it would refuse it."""
    check_root(root, root.shape[-1])
    save_file({_NAME: root.contiguous()}, file)
