"""The models that the benchmarks run: random weights, of sizes that two CPU cores can serve."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from fedsea_mq.model.partition import Cut

CUT: Final = Cut(2, 2)
HIDDEN: Final = 512
VOCAB: Final = 32_000
_CONFIG: Final = {
    "hidden_size": HIDDEN,
    "intermediate_size": 1408,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": VOCAB,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
# Half as wide as a LLaMA-2-7B: a step is as good as all matrix products.
_WIDE: Final = {
    **_CONFIG,
    "hidden_size": 2048,
    "intermediate_size": 5504,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 1024,
}


def write_model(folder: Path) -> None:
    """Write the model with bf16 weights; a folder that has it already stays as it is."""
    _write(_CONFIG, folder)


def write_wide_model(folder: Path) -> None:
    """The same for one of as many blocks, and four times the width."""
    _write(_WIDE, folder)


def _write(config: Mapping[str, Any], folder: Path) -> None:
    if (folder / "config.json").exists():
        return
    disable_progress_bar()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**config)).to(torch.bfloat16)
    # Without an end token every run has the length that it was given.
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
