"""The unsplit model in transformers: what the same cores do without network and privacy."""

from __future__ import annotations

import time
from typing import Any, Final

import torch
from transformers import LlamaForCausalLM

from fedsea_mq.model.numerics import DTYPES

# Which of them is the faster depends on the machine.
CPU_DTYPES: Final = ("fp32", "bf16")


def load_unsplit(folder: str, dtype: str) -> Any:
    """The whole model."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype]).eval()


def generate_seconds(model: Any, batch: int, prompt: int, new: int) -> float:
    """`generate`, greedy, on one static batch of random prompts: the whole call."""
    ids = torch.randint(model.config.vocab_size, (batch, prompt))
    begun = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )
    seconds = time.perf_counter() - begun
    assert out.shape == (batch, prompt + new)
    return seconds


def decode_token_seconds(model: Any, prompt: int, new: int) -> float:
    """Time of a further token of a single stream, without what prompt and first token cost."""
    whole = generate_seconds(model, 1, prompt, new)
    return (whole - generate_seconds(model, 1, prompt, 1)) / (new - 1)
