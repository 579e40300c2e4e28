"""Gradients to and from the payload parts of a frame, scaled so that narrow dtypes hold them.

A gradient of a mean loss over many tokens is so small that fp16 would round most of it to zero. So
it is divided by the power of two that brings its largest magnitude near 1, and the power travels in
the body. Scaling by a power of two rounds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch

from fedsea_mq.errors import MalformedFrame, TrainingDiverged
from fedsea_mq.model.wire_states import decode_states, encode_states
from fedsea_mq.protocol.payload import PayloadSpec, WireDtype

# 2 ** exponent and its inverse are both normal numbers of fp32.
_MOST: Final = 126


def encode_gradient(tensor: torch.Tensor, dtype: WireDtype) -> tuple[int, list[bytes]]:
    """`[positions, hidden]` as an exponent and raw parts, which hold it over `2 ** exponent`.

    Raises:
        TrainingDiverged: a value is not a finite number.
    """
    gradient = tensor.detach().float()
    largest = float(gradient.abs().max()) if gradient.numel() else 0.0
    if not math.isfinite(largest):
        raise TrainingDiverged("a gradient is not a finite number")
    exponent = max(-_MOST, min(_MOST, math.frexp(largest)[1]))
    return exponent, encode_states(gradient * 2.0**-exponent, dtype)


def decode_gradient(
    parts: Sequence[bytes], exponent: int, count: int, spec: PayloadSpec
) -> torch.Tensor:
    """Undo `encode_gradient`: fp32 `[count, hidden]`.

    Raises:
        MalformedFrame: the parts are not what the spec says, checked before allocation; or a value
            is not a finite number.
    """
    gradient = decode_states(parts, count, spec, torch.float32) * 2.0**exponent
    if not bool(gradient.isfinite().all()):
        raise MalformedFrame("a gradient that is not finite")
    return gradient
