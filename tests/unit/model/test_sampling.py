"""With a seed, the tokens are those of transformers' generate on the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from fedsea_mq.model.sampling import Sampler, SamplingSettings
from tests.unit.model.split import oracle_logits, prompt, unsplit

NEW = 12
PROMPT = prompt(8, seed=3)


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Any:
    return unsplit(tiny_llama)


def generated(model: Any, seed: int, **how: Any) -> list[int]:
    torch.manual_seed(seed)
    out = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=NEW, eos_token_id=None, **{"top_k": 0, **how}
    )
    tokens: list[int] = out[0, len(PROMPT) :].tolist()
    return tokens


def sampled(model: Any, seed: int, **how: Any) -> list[int]:
    sampler, tokens = Sampler(SamplingSettings(seed=seed, **how)), list(PROMPT)
    for _ in range(NEW):
        tokens.append(sampler.choose(tokens, oracle_logits(model, tokens)[-1]))
    return tokens[len(PROMPT) :]


@pytest.mark.parametrize("seed", [0, 1, 12345])
@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 1.0},
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 1.0, "repetition_penalty": 1.5},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_a_seed_gives_the_tokens_that_generate_gives(
    model: Any, seed: int, how: dict[str, Any]
) -> None:
    assert sampled(model, seed, **how) == generated(model, seed, do_sample=True, **how)


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_temperature_nought_is_greedy(model: Any, penalty: float) -> None:
    expected = generated(model, 0, do_sample=False, repetition_penalty=penalty)
    assert sampled(model, 5, repetition_penalty=penalty) == expected


def many(settings: SamplingSettings, logits: torch.Tensor, tokens: list[int]) -> list[int]:
    sampler = Sampler(settings)
    return [sampler.choose(tokens, logits) for _ in range(2000)]


LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def test_top_k_keeps_the_k_likeliest() -> None:
    assert set(many(SamplingSettings(temperature=1, top_k=2, seed=0), LOGITS, [0])) == {0, 1}


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    assert set(many(SamplingSettings(temperature=1, top_p=0.9, seed=0), LOGITS, [0])) == {0, 1, 2}


def test_temperature_sharpens_and_flattens() -> None:
    shares = {
        temperature: many(SamplingSettings(temperature=temperature, seed=0), LOGITS, [0]).count(0)
        for temperature in (0.5, 1.0, 4.0)
    }
    assert shares[0.5] > shares[1.0] > shares[4.0]
    assert shares[1.0] / 2000 == pytest.approx(0.5, abs=0.04)


def test_a_repetition_penalty_makes_what_was_said_less_likely() -> None:
    settings = SamplingSettings(repetition_penalty=2.0)
    assert Sampler(settings).choose([3], LOGITS) == 0
    assert Sampler(settings).choose([0], LOGITS) == 1


def test_without_a_seed_two_samplers_differ() -> None:
    flat = torch.zeros(300)
    settings = SamplingSettings(temperature=1)
    assert many(settings, flat, [0])[:50] != many(settings, flat, [0])[:50]


def test_sampling_leaves_torchs_own_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    many(SamplingSettings(temperature=1, seed=9), LOGITS, [0])
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"max_new_tokens": 0},
        {"stop": [""]},
        {"min_p": 0.1},
    ],
    ids=str,
)
def test_settings_out_of_range_or_unknown_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SamplingSettings(**wrong)


@pytest.mark.parametrize(("presence", "frequency"), [(0.5, 0.0), (0.0, 0.3), (2.0, -0.7)])
def test_penalties_count_what_was_generated_and_not_the_prompt(
    presence: float, frequency: float
) -> None:
    logits = torch.tensor([3.0, 2.9, 2.8, 2.7])
    tokens = [0, 0, 0, 1, 2, 2]  # of which the first three are the prompt
    settings = SamplingSettings(presence_penalty=presence, frequency_penalty=frequency)
    times = torch.tensor([0, 1, 2, 0])
    wanted = (logits - frequency * times - presence * (times > 0)).argmax()
    assert Sampler(settings, prompt=3).choose(tokens, logits) == int(wanted)
