"""LoRA adapters of tiny models, made and read by peft, which is the oracle."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from fedsea_mq.model.lora import LoraSettings


def unsplit(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def make_adapter(
    model: Path, out: Path, lora: LoraSettings, *, seed: int = 0, blocks: Iterable[int] = range(4)
) -> Path:
    """A random adapter of the whole model, as peft saves it."""
    adapted = get_peft_model(unsplit(model), lora.config(blocks))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.1, generator=generator)
    adapted.save_pretrained(out)
    return out


def with_adapter(model: Path, adapter: Path | None) -> Any:
    """The unsplit model, with an adapter or without."""
    plain = unsplit(model)
    return plain if adapter is None else PeftModel.from_pretrained(plain, adapter).eval()
