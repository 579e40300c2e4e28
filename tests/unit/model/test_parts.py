"""Head, trunk and tail together are the unsplit model, for each family and every legal cut."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from fedsea_mq.errors import CheckpointError, ConfigError
from fedsea_mq.model.attention import Span
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Cut, legal_cuts
from fedsea_mq.model.parts import load_client, load_trunk, weight_bytes
from tests.unit.model.split import TOLERANCE, Split, oracle_logits, prompt, unsplit

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral, window 6": ("mistral", {}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, window in two layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    ),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
}
IDS = prompt(21)


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def folder(request: pytest.FixtureRequest, make_model: Callable[..., Path]) -> Path:
    family, config = request.param
    return make_model(family, **config)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Any:
    return unsplit(folder)


@pytest.fixture(scope="module", params=legal_cuts(4), ids=str)
def split(request: pytest.FixtureRequest, folder: Path) -> Split:
    return Split.load(folder, request.param)


def equal(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Within fp32's rounding: the unsplit model's own decode is as far from its own prefill."""
    return float((ours - theirs).abs().max() / theirs.abs().max()) <= TOLERANCE


def test_a_prompt_in_one_piece_gives_the_unsplit_logits(split: Split, whole: Any) -> None:
    (logits,) = split.step([(split.session(), IDS)])
    assert float((logits - oracle_logits(whole, IDS)).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("chunks", [[8, 8, 5], [1, 6, 7, 1, 6], [20, 1]], ids=str)
def test_a_prompt_in_chunks_gives_the_unsplit_logits(
    split: Split, whole: Any, chunks: list[int]
) -> None:
    session, at, logits = split.session(), 0, []
    for count in chunks:
        logits += split.step([(session, IDS[at : at + count])])
        at += count
    assert equal(torch.cat(logits), oracle_logits(whole, IDS))


def test_decoding_token_by_token_gives_the_unsplit_logits(split: Split, whole: Any) -> None:
    session = split.session()
    logits = [split.step([(session, [token])])[0] for token in IDS]
    assert equal(torch.cat(logits), oracle_logits(whole, IDS))


def test_sessions_packed_into_the_same_steps_each_give_their_unsplit_logits(
    split: Split, whole: Any
) -> None:
    prompts = [prompt(length, seed) for seed, length in enumerate((17, 3, 9, 12))]
    sessions = [split.session() for _ in prompts]
    got: list[list[torch.Tensor]] = [[] for _ in prompts]
    # Prefill beside chunks beside decodes, whoever has something left.
    for counts in ([8, 3, 1, 5], [1, 0, 4, 1], [8, 0, 1, 6], [0, 0, 3, 0]):
        work = [
            (number, prompts[number][sessions[number].cached :][:count])
            for number, count in enumerate(counts)
            if count
        ]
        logits = split.step([(sessions[number], ids) for number, ids in work])
        for (number, _), rows in zip(work, logits, strict=True):
            got[number].append(rows)
    for ids, rows in zip(prompts, got, strict=True):
        assert equal(torch.cat(rows), oracle_logits(whole, ids))


def test_after_a_rollback_other_tokens_give_their_own_logits(split: Split, whole: Any) -> None:
    session = split.session()
    split.step([(session, IDS)])
    session.cached = 10
    other = prompt(6, seed=5)
    (logits,) = split.step([(session, other)])
    assert equal(logits, oracle_logits(whole, IDS[:10] + other)[10:])


def test_logits_are_those_of_the_rows_that_each_span_is_read_at(tiny_llama: Path) -> None:
    split = Split.load(tiny_llama, Cut(1, 1))
    ids = prompt(5 + 20, seed=7)
    work = [(split.session(), ids[:5]), (split.session(), ids[5:])]
    expected = [rows[-read:] for rows, read in zip(split.step(work), (5, 3), strict=True)]
    head, trunk, tail = (
        [
            Span(session.caches[part], 0, len(tokens), read)
            for (session, tokens), read in zip(work, (5, 3), strict=True)
        ]
        for part in range(3)
    )
    with torch.inference_mode():
        states = split.trunk(split.head(torch.tensor(ids), head), trunk)
        logits = split.tail.logits(states, tail)
    assert [tuple(rows.shape) for rows in logits] == [tuple(rows.shape) for rows in expected]
    assert all(rows.dtype == torch.float32 for rows in logits)
    assert all(equal(ours, theirs) for ours, theirs in zip(logits, expected, strict=True))


def test_tied_embeddings_are_held_once(make_model: Callable[..., Path]) -> None:
    tied = Checkpoint.open(str(make_model("llama", tie_word_embeddings=True)))
    head, tail = load_client(tied, Cut(1, 1), Numerics())
    assert tail.lm_head.weight.data_ptr() == head.embedding.weight.data_ptr()


def test_a_trunk_holds_its_blocks_and_no_more(tiny_llama: Path) -> None:
    checkpoint = Checkpoint.open(str(tiny_llama))
    trunk = load_trunk(checkpoint, Cut(1, 2), Numerics())
    block = sum(t.nbytes for n, t in checkpoint.tensors.items() if n.startswith("model.layers.1."))
    assert trunk.kv_shape.blocks == range(1, 2)
    assert sum(p.nbytes for p in trunk.parameters()) == block
    assert not any(p.is_meta for p in trunk.parameters())


def test_a_gpu_that_is_not_there_is_named(tiny_llama: Path) -> None:
    checkpoint = Checkpoint.open(str(tiny_llama))
    for load, device in product((load_client, load_trunk), ("cuda:99", "cuda:256", "cuda:999")):
        with pytest.raises(ConfigError, match=rf"model.device {device}: torch .* has \d+ GPUs"):
            load(checkpoint, Cut(1, 1), Numerics(device=device))


def test_weights_and_cache_take_the_compute_dtype(tiny_llama: Path) -> None:
    trunk = load_trunk(Checkpoint.open(str(tiny_llama)), Cut(1, 1), Numerics("fp16"))
    assert {p.dtype for p in trunk.parameters()} == {torch.float16}
    assert trunk.kv_shape.bytes_per_position == 2 * 2 * 2 * 16 * 2


def test_bf16_on_a_cpu_is_for_what_is_read_from_memory(tiny_llama: Path) -> None:
    checkpoint = Checkpoint.open(str(tiny_llama))
    whole, trunk = (
        load_trunk(checkpoint, Cut(1, 1), Numerics(dtype)) for dtype in ("fp32", "bf16")
    )
    assert {p.dtype for p in trunk.parameters()} == {torch.float32}  # the norms
    assert 2 * trunk.kv_shape.bytes_per_position == whole.kv_shape.bytes_per_position
    assert trunk.dtype == whole.dtype == torch.float32  # of the states between the blocks
    norms = sum(p.nbytes for p in trunk.parameters())
    assert weight_bytes(trunk) == norms + (weight_bytes(whole) - norms) // 2


def test_given_weights_of_another_shape_than_the_config_says_then_it_is_an_error(
    tiny_llama: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_model("llama", hidden_size=32, intermediate_size=48)
    (tmp_path / "model.safetensors").symlink_to(tiny_llama / "model.safetensors")
    (tmp_path / "config.json").symlink_to(other / "config.json")
    with pytest.raises(CheckpointError, match="shape"):
        load_trunk(Checkpoint.open(str(tmp_path)), Cut(1, 1), Numerics())


def test_bf16_is_nearer_to_fp32_than_transformers_all_in_bf16(folder: Path, whole: Any) -> None:
    """The factors of products and the cached keys and values round to bf16, and nothing else."""
    split, exact = Split.load(folder, Cut(1, 1), Numerics("bf16")), oracle_logits(whole, IDS)
    session = split.session()
    got = torch.cat([split.step([(session, [token])])[0] for token in IDS])
    theirs = oracle_logits(unsplit(folder, torch.bfloat16), IDS).float()
    assert float((got - exact).norm()) <= float((theirs - exact).norm())


def test_loading_leaves_other_threads_their_default_dtype() -> None:
    # Given a checkpoint whose config says fp16, and a thread that makes tensors meanwhile.
    checkpoint, loaded, seen = Checkpoint.open("embedded"), Event(), set()

    def watch() -> None:
        while not loaded.is_set():
            seen.add(torch.get_default_dtype())

    with ThreadPoolExecutor(1) as other:
        watching = other.submit(watch)
        for _ in range(3):
            load_client(checkpoint, Cut(1, 1), Numerics("fp32", "cpu"))
        loaded.set()
        watching.result()
    assert seen == {torch.float32}
