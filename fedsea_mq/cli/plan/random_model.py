"""Models of random weights, written to be measured: as wide as a given one, or next to nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils.logging import disable_progress_bar

from fedsea_mq.planning.fitting import NARROW_PARTS
from fedsea_mq.planning.holdings import Holdings

# More than processors have in their caches: weights are to come from memory, as they do in use.
_BEYOND_CACHES: Final = 64 << 20
_NARROW: Final = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "max_position_embeddings": 1024,
}


def enough_blocks(sizes: Holdings) -> int:
    """How many blocks to measure: one a party at least, and else no more than the model has."""
    beyond = -(-_BEYOND_CACHES // sizes.block_bytes)
    return max(NARROW_PARTS, min(beyond, sizes.of.blocks))


def write_narrow(folder: Path, blocks: int = NARROW_PARTS) -> None:
    """A model whose every cost is that of running it at all."""
    _write(LlamaConfig(num_hidden_layers=blocks, **_NARROW), folder, torch.float32)


def write_blocks(config: Any, blocks: int, folder: Path, dtype: torch.dtype) -> None:
    """A model of that config with so many blocks."""
    fields = config.to_dict()
    # Said again for each block, where it is said at all.
    fields.pop("layer_types", None)
    fields.pop("dtype", None)
    _write(type(config)(**{**fields, "num_hidden_layers": blocks}), folder, dtype)


def _write(config: Any, folder: Path, dtype: torch.dtype) -> None:
    disable_progress_bar()
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    # Without an end token every answer has the length that was asked for.
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
