"""Hidden states to and from the payload parts of a frame."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedsea_mq.protocol.payload import PayloadSpec, WireDtype

_FLOATS = {
    WireDtype.FP32: torch.float32,
    WireDtype.FP16: torch.float16,
    WireDtype.BF16: torch.bfloat16,
}
_INT8_MAX = 127.0
_FP16_MAX = 65504.0


def encode_states(states: torch.Tensor, dtype: WireDtype) -> list[bytes]:
    """`[positions, hidden]` as raw parts; int8 carries one fp32 scale a position.

    fp16 saturates at its largest number instead of sending infinities.
    """
    states = states.detach().cpu()
    if states.shape[0] == 0:
        return []
    if dtype is WireDtype.INT8:
        scales = states.float().abs().amax(dim=1).clamp_min(1e-12) / _INT8_MAX
        quantised = (states.float() / scales[:, None]).round().to(torch.int8)
        return [_raw(quantised), _raw(scales)]
    if dtype is WireDtype.FP16:
        states = states.clamp(-_FP16_MAX, _FP16_MAX)
    return [_raw(states.to(_FLOATS[dtype]))]


def decode_states(
    parts: Sequence[bytes], positions: int, spec: PayloadSpec, dtype: torch.dtype
) -> torch.Tensor:
    """Payload parts as `[positions, hidden]` in the compute `dtype`.

    Raises:
        MalformedFrame: the parts are not what the spec says, checked before allocation.
    """
    spec.check(parts, positions)
    if positions == 0:
        return torch.empty((0, spec.hidden), dtype=dtype)
    shape = (positions, spec.hidden)
    if spec.dtype is WireDtype.INT8:
        quantised = _view(parts[0], torch.int8).view(shape).float()
        return (quantised * _view(parts[1], torch.float32)[:, None]).to(dtype)
    return _view(parts[0], _FLOATS[spec.dtype]).view(shape).to(dtype)


def _raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _view(part: bytes, dtype: torch.dtype) -> torch.Tensor:
    # bytearray: torch wants writable memory, and a read-only view would warn.
    return torch.frombuffer(bytearray(part), dtype=dtype)
