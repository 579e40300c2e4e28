"""What int8 weights and an int8 KV cache may do to the logits of the unsplit fp32 model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsea_mq.cli.prompts import prompt_tokens
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Cut
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
    """Compiled attention throughout, where there is numba."""
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


PATHS = [whole_prompt, chunks_after_going_back]
# A step for each token takes its time: a few tokens show what compiled attention does.
FEW = 24


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
    prompts = prompt_tokens(checkpoint, None, 12, 128)
    model = unsplit(checkpoint.folders[0])
    return prompts, [oracle_logits(model, ids) for ids in prompts]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
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


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("way", TRAINED, ids=NAMES)
def test_the_trained_model_stays_within_its_bounds_token_by_token(
    trained: tuple[list[list[int]], list[torch.Tensor]], way: Way, dtype: str
) -> None:
    prompts, exact = trained
    split = Split.load("embedded", CUT, way.numerics(dtype))
    ours, theirs = token_by_token(split, prompts[0][:FEW]), exact[0][:FEW]
    assert 0 < float((ours - theirs).norm() / theirs.norm()) <= way.error


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("way", RANDOM, ids=NAMES)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_random_models_of_each_family_stay_within_theirs(
    make_model: Callable[..., Path],
    family: str,
    way: Way,
    path: Callable[[Split, list[int]], torch.Tensor],
) -> None:
    folder = make_model(family, initializer_range=0.05)
    prompts = [prompt(50, seed) for seed in range(4)]
    model: Any = unsplit(folder)
    split = Split.load(folder, CUT, way.numerics("fp32"))
    check(way, [path(split, ids) for ids in prompts], [oracle_logits(model, i) for i in prompts])
