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

from fedsea_mq.model.wire_states import decode_states, encode_states
from fedsea_mq.protocol.payload import PayloadSpec, WireDtype

_MOST: Final = 256


def encode_gradient(gradient: torch.Tensor, dtype: WireDtype) -> tuple[int, list[bytes]]:
    """`[positions, hidden]` as an exponent and raw parts, which hold it over `2 ** exponent`.

    Its largest magnitude becomes 0.5 to 1. What is not finite stays so, where the dtype can.
    """
    states = gradient.detach().float()
    largest = float(states.abs().amax()) if states.numel() else 0.0
    exponent = math.frexp(largest)[1] if math.isfinite(largest) else 0
    exponent = min(max(exponent, -_MOST), _MOST)
    return exponent, encode_states(_times_power(states, -exponent), dtype)


def decode_gradient(
    parts: Sequence[bytes], exponent: int, count: int, spec: PayloadSpec
) -> torch.Tensor:
    """Undo `encode_gradient`: fp32 `[count, hidden]`, which may not be finite.

    Raises:
        MalformedFrame: the parts are not what the spec says, checked before allocation.
    """
    return _times_power(decode_states(parts, count, spec, torch.float32), exponent)


def _times_power(states: torch.Tensor, exponent: int) -> torch.Tensor:
    return torch.ldexp(states, torch.tensor(exponent))
