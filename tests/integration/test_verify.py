"""`fedsea verify` over real processes: exactness, bytes and memory, for each family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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


def test_only_fp32_throughout_has_to_be_equal() -> None:
    sizes: dict[str, int] = {}
    near = Verdict(1, 1, "fp32", "auto", "auto", 6, 6, 2e-4, 1e-5, {}, 0, sizes, sizes, sizes)
    assert near.failed
    assert not replace(near, max_abs_logit_diff=1e-5).failed
    assert replace(near, max_abs_logit_diff=1e-5, identical=5).failed
    others = ({"dtype": "bf16"}, {"weights": "int8"}, {"kv_cache": "int8"})
    assert not any(replace(near, **other).failed for other in others)


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


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 MB of client, 231 MB of trunk: memory says who holds what."""
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
    folder = tmp_path_factory.mktemp("large")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("int8", [False, True], ids=["fp32", "int8"])
async def test_no_party_holds_more_than_its_own_tensors(large: Path, int8: bool) -> None:
    overrides = ("model.weights=int8", "model.kv_cache=int8") if int8 else ()
    verdict = await one(large, 0, 1, Ask(None, 2, 6, 20), *overrides)
    held = verdict.tensor_bytes
    assert (55 << 20 if int8 else 220 << 20) < held["trunk"] < (60 << 20 if int8 else 240 << 20)
    slack = 48 << 20  # thread pools, sockets, KV and the allocator
    # Copying out of a mapped file touches at most one tensor's pages beside the tensors themselves;
    # in int8 the rounded ones lie beside the pages once more, before they are packed.
    passing = 1024 * 3072 * (5 if int8 else 4)
    for party in ("client", "trunk"):
        grown = verdict.peak_rss[party] - verdict.baseline_rss[party]
        assert grown < held[party] + passing + slack
    # Nothing has to be equal in int8, but it is near.
    assert not verdict.failed
    assert verdict.relative_logit_error <= (0.08 if int8 else 1e-5)
