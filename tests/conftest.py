"""Tiny random models, made once a run: the oracle is always the same folder, unsplit."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

MakeModel = Callable[..., Path]

_FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 6, "head_dim": 16}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
}
_SIZE = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # Ten times the usual: logits then differ by whole units, and a wrong mask shows.
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def pytest_configure() -> None:
    """A shell ignores Ctrl-C in what it puts in the background, and children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """`make_model(family, **config)`: the folder of a random model, the same for the same call."""
    made: dict[str, Path] = {}

    def make(family: str = "llama", *, seed: int = 0, **config: Any) -> Path:
        key = f"{family} {seed} {sorted(config.items())}"
        if key not in made:
            config_class, model_class, own = _FAMILIES[family]
            said = {**_SIZE, "tie_word_embeddings": False, **own, **config}
            torch.manual_seed(seed)
            folder = tmp_path_factory.mktemp(family)
            model_class(config_class(**said)).save_pretrained(folder)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_llama(make_model: MakeModel) -> Path:
    """A LLaMA of 4 blocks with grouped-query attention."""
    return make_model("llama")
