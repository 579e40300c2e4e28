"""What int8 weights and an int8 KV cache may do to the logits of the unsplit fp32 model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsea_mq.cli.prompts import prompt_tokens
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.int8_linear import Int8Linear
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Cut
from fedsea_mq.model.parts import load_client, load_trunk, weight_bytes
from tests.unit.model.split import Split, oracle_logits, prompt, unsplit

CUT = Cut(1, 1)


@dataclass(frozen=True)
class Way:
    """What is int8, and the bounds that it is held to.

    `error`: the relative L2 error of the logits; `agreement`: the share of positions at which the
    largest is the same.
    """

    weights: bool
    kv: bool
    error: float
    agreement: float

    def numerics(self, dtype: str) -> Numerics:
        return Numerics(dtype, int8_weights=self.weights, int8_kv=self.kv)


# Measured: an error of 0.015, 0.003 and 0.015 in fp32, and 0.005 for the cache beside bf16 weights;
# an agreement of 0.98, and 1.0 for the cache in fp32.
TRAINED = [Way(True, False, 0.02, 0.96), Way(False, True, 0.006, 0.96), Way(True, True, 0.02, 0.96)]
# Of four random models: up to 0.024, 0.006 and 0.025; down to 0.95, 0.98 and 0.94.
RANDOM = [Way(True, False, 0.03, 0.93), Way(False, True, 0.01, 0.97), Way(True, True, 0.03, 0.92)]
NAMES = ["weights", "kv", "both"]


def whole_prompt(split: Split, ids: list[int]) -> torch.Tensor:
    """One long span."""
    return split.step([(split.session(len(ids)), ids)])[0]


def token_by_token(split: Split, ids: list[int]) -> torch.Tensor:
    """Compiled attention, where there is numba."""
    session = split.session(len(ids))
    return torch.cat([split.step([(session, [token])])[0] for token in ids])


def chunks_after_going_back(split: Split, ids: list[int]) -> torch.Tensor:
    """Other tokens first, in the places of those that count: their scales must go with them."""
    session = split.session(len(ids))
    split.step([(session, ids[::-1])])
    session.cached, logits, size = 0, [], 0
    while session.cached < len(ids):
        size = 20 if size == 3 else 3
        logits += split.step([(session, ids[session.cached :][:size])])
    return torch.cat(logits)


PATHS = [whole_prompt, token_by_token, chunks_after_going_back]


def check(way: Way, got: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> None:
    ours, theirs = torch.cat(list(got)), torch.cat(list(exact))
    error = float((ours - theirs).norm() / theirs.norm())
    agreement = float((ours.argmax(1) == theirs.argmax(1)).float().mean())
    assert error <= way.error
    assert agreement >= way.agreement
    assert error > 0  # something was rounded


@pytest.fixture(scope="module")
def trained() -> tuple[list[list[int]], list[torch.Tensor]]:
    """Prompts of the embedded tasks, and the logits of the unsplit model in fp32."""
    checkpoint = Checkpoint.open("embedded")
    prompts = prompt_tokens(checkpoint, None, 4, 128)
    model = unsplit(checkpoint.folders[0])
    return prompts, [oracle_logits(model, ids) for ids in prompts]


@pytest.mark.parametrize(
    ("dtype", "path"), [*(("fp32", path) for path in PATHS), ("bf16", whole_prompt)]
)
@pytest.mark.parametrize("way", TRAINED, ids=NAMES)
def test_the_trained_model_stays_within_its_bounds(
    trained: tuple[list[list[int]], list[torch.Tensor]],
    way: Way,
    dtype: str,
    path: Callable[[Split, list[int]], torch.Tensor],
) -> None:
    prompts, exact = trained
    split = Split.load("embedded", CUT, way.numerics(dtype))
    check(way, [path(split, ids) for ids in prompts], exact)


@pytest.mark.parametrize(
    ("family", "path"),
    [
        *product(["llama", "qwen2", "qwen3"], [whole_prompt, chunks_after_going_back]),
        *product(["mistral"], PATHS),
    ],
)
@pytest.mark.parametrize("way", RANDOM, ids=NAMES)
def test_random_models_of_each_family_stay_within_theirs(
    make_model: Callable[..., Path],
    family: str,
    way: Way,
    path: Callable[[Split, list[int]], torch.Tensor],
) -> None:
    folder = make_model(family, initializer_range=0.05)
    prompts = [prompt(50, seed) for seed in range(2)]
    model: Any = unsplit(folder)
    split = Split.load(folder, CUT, way.numerics("fp32"))
    check(way, [path(split, ids) for ids in prompts], [oracle_logits(model, i) for i in prompts])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_is_int8_weighs_a_byte_and_its_scale(tiny_llama: Path, dtype: str) -> None:
    checkpoint = Checkpoint.open(str(tiny_llama))
    plain, int8 = (
        load_trunk(checkpoint, CUT, numerics)
        for numerics in (Numerics(dtype), Numerics(dtype, int8_weights=True, int8_kv=True))
    )
    assert {p.dtype for p in int8.parameters()} == {torch.float32}  # the norms, and nothing else
    assert int8.dtype == torch.float32  # of the states between the blocks
    norms = sum(p.nbytes for p in int8.parameters())
    weights = (weight_bytes(plain) - norms) // Numerics(dtype).weights.itemsize
    channels = 2 * (64 + 32 + 32 + 64 + 96 + 96 + 64)  # of two blocks
    assert weight_bytes(int8) == norms + weights + 4 * channels
    assert int8.kv_shape.bytes_per_position == 2 * 2 * 2 * (16 + 4)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_client_has_its_lm_head_in_int8_and_its_embedding_not(
    make_model: Callable[..., Path], tied: bool
) -> None:
    numerics = Numerics("bf16", int8_weights=True)
    checkpoint = Checkpoint.open(str(make_model("llama", tie_word_embeddings=tied)))
    head, tail = load_client(checkpoint, CUT, numerics)
    assert head.embedding.weight.dtype == torch.bfloat16
    assert isinstance(tail.lm_head, Int8Linear)
