"""`fedsea verify` over real processes: exactness, bytes and memory, for each family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedsea_mq.cli.verify import Ask, Verdict, verify
from fedsea_mq.settings import Settings

MULTIRC = Path(__file__).parents[3] / "shared" / "data" / "multirc" / "train.jsonl"


async def one(model: str | Path, head: int, tail: int, asks: Ask, *overrides: str) -> Verdict:
    settings = Settings.load(
        None,
        [
            f"model.path={model}",
            f"model.head_blocks={head}",
            f"model.tail_blocks={tail}",
            "log.level=warning",
            *overrides,
        ],
    )
    (verdict,) = await verify(settings, asks, every_cut=False)
    return verdict


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
async def test_each_family_is_exact_in_fp32(make_model: Callable[..., Path], family: str) -> None:
    verdict = await one(make_model(family), 1, 1, Ask(None, 6, 16, 100))
    assert verdict.identical == verdict.prompts == 6
    assert verdict.max_abs_logit_diff <= 1e-4


@pytest.mark.parametrize(("head", "tail"), [(0, 0), (1, 1), (2, 3)])
async def test_the_embedded_model_is_exact_in_fp32(head: int, tail: int) -> None:
    verdict = await one("embedded", head, tail, Ask(None, 6, 24, 512))
    assert verdict.identical == verdict.prompts
    assert verdict.max_abs_logit_diff <= 1e-4
    assert verdict.bytes_per_decode_token["up"] <= 1.5 * verdict.payload_floor_bytes


@pytest.mark.skipif(not MULTIRC.exists(), reason="MultiRC's passages are not on this machine")
async def test_the_embedded_model_is_exact_on_real_passages() -> None:
    verdict = await one("embedded", 1, 1, Ask(MULTIRC, 8, 24, 512))
    assert verdict.identical == verdict.prompts
    assert verdict.max_abs_logit_diff <= 1e-4


async def test_a_decode_step_costs_five_percent_over_its_floor_at_hidden_4096(
    tmp_path: Path,
) -> None:
    # As wide as LLaMA-2-7B on the wire, and thin everywhere else.
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=4096,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    verdict = await one(tmp_path, 1, 1, Ask(None, 2, 12, 40), "model.dtype=bf16")
    assert verdict.payload_floor_bytes == 8192
    assert verdict.bytes_per_decode_token["up"] <= 1.05 * 8192
    assert verdict.bytes_per_decode_token["down"] <= 1.05 * 8192


async def test_no_party_holds_more_than_its_own_tensors(tmp_path: Path) -> None:
    # 16 MB of client, 208 MB of trunk: memory says who holds what.
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    verdict = await one(tmp_path, 0, 1, Ask(None, 2, 6, 20))
    slack = 48 << 20  # thread pools, sockets, KV and the allocator
    grown = {who: verdict.peak_rss[who] - verdict.baseline_rss[who] for who in ("client", "trunk")}
    assert verdict.tensor_bytes["trunk"] > 200 << 20
    assert grown["client"] < verdict.tensor_bytes["client"] + slack < verdict.tensor_bytes["trunk"]
    # Copying out of a mapped file touches at most one tensor's pages beside the tensors themselves.
    largest = 1024 * 3072 * 4
    assert grown["trunk"] < verdict.tensor_bytes["trunk"] + largest + slack
