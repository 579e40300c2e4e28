"""What a head's output is measured on for the relative noise scale: public, and always the same."""

from __future__ import annotations

from typing import Final

import torch

from fedsea_mq.errors import CheckpointError
from fedsea_mq.model.attention import Span
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.parts import Head

_TEXT: Final = (
    "The library opens at nine. Two farmers carried baskets of apples to the market, and the baker "
    "sold bread and honey until noon. Last winter the river froze, so nobody could fish. "
    "A doctor in the old town keeps a grey horse and writes letters to her sister every week."
)
_POSITIONS: Final = 128


def calibration_ids(checkpoint: Checkpoint) -> list[int]:
    """Token ids of a text or, for a model without a tokenizer, from all over its vocabulary."""
    try:
        ids = checkpoint.tokenizer(_TEXT)["input_ids"]
    except CheckpointError:
        vocab = int(checkpoint.config.vocab_size)
        return list(range(0, vocab, max(1, vocab // _POSITIONS)))
    return list(ids)[:_POSITIONS]


@torch.inference_mode()
def calibration_states(checkpoint: Checkpoint, head: Head) -> torch.Tensor:
    """What the head, without adapters, makes of them: `[positions, hidden]`."""
    ids = calibration_ids(checkpoint)
    shape = head.run.kv_shape
    span = Span(head.run.new_cache(len(ids)), 0, len(ids))
    states: torch.Tensor = head(torch.tensor(ids, device=shape.device), [span])
    return states
