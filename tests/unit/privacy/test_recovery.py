"""How recovery is counted, on texts where the right figures can be worked out by hand."""

from __future__ import annotations

import pytest

from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.privacy.recovery import Guessed, Judge

TOKENIZER = Checkpoint.open("embedded").tokenizer


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text)["input_ids"])


TEXT = ids("Record of Jen Kov, number 482913. Kewyn is a weaver.")
SHADOW = [ids("Kewyn is a baker. She lives in Marshmoor. " * 20)]


def guessed(guess: list[int], tokens: list[int] = TEXT, prompt: int | None = None) -> Guessed:
    return Guessed(tokens, guess, len(tokens) if prompt is None else prompt, ("Jen Kov", "482913"))


def test_a_whole_text_is_recovered_whole() -> None:
    found = Judge(TOKENIZER, SHADOW).judge([guessed(TEXT)])
    shares = (found.token_recovery, found.content_recovery, found.exact_prompts, found.secrets)
    assert shares == (1.0, 1.0, 1.0, 1.0)
    assert found.rouge_l == pytest.approx(1.0)
    assert found.bleu == pytest.approx(1.0)
    assert found.ci == (1.0, 1.0)
    assert found.answer_recovery is None


def test_one_wrong_digit_loses_a_token_the_number_and_the_exact_prompt() -> None:
    wrong = list(TEXT)
    digit = ids("4 8")
    at = next(i for i, token in enumerate(TEXT) if token == ids("x482913")[-1])
    wrong[at] = next(token for token in digit if token != TEXT[at])
    found = Judge(TOKENIZER, SHADOW).judge([guessed(wrong)])
    assert found.token_recovery == pytest.approx(1 - 1 / len(TEXT))
    assert found.secrets == 0.5
    assert found.exact_prompts == 0.0
    assert 0 < found.bleu < 1


def test_shares_are_over_all_tokens_and_the_interval_over_texts() -> None:
    none = [0] * len(TEXT)
    judge = Judge(TOKENIZER, SHADOW)
    found = judge.judge([guessed(TEXT), guessed(none)])
    assert found.token_recovery == 0.5
    assert found.exact_prompts == 0.5
    assert found.ci == (0.0, 1.0)  # two texts say nothing
    several = judge.judge([guessed(TEXT), guessed(none)] * 50)
    low, high = several.ci
    assert 0.35 < low < 0.5 < high < 0.65


def test_answers_are_counted_by_themselves() -> None:
    wrong_answer = [*TEXT[:-3], 0, 0, TEXT[-1]]
    found = Judge(TOKENIZER, SHADOW).judge([guessed(wrong_answer, prompt=len(TEXT) - 3)])
    assert found.token_recovery == 1.0
    assert found.answer_recovery == pytest.approx(1 / 3)


def test_common_tokens_are_no_content_and_guessing_finds_them() -> None:
    judge = Judge(TOKENIZER, SHADOW)
    common, rare = max(SHADOW[0], key=SHADOW[0].count), ids("zebra")[0]
    assert not judge.is_content(common)
    assert judge.is_content(rare)
    share = SHADOW[0].count(common) / len(SHADOW[0])
    baseline = judge.random_baseline([guessed([common, rare], [common, rare])])
    assert baseline == pytest.approx(share / 2)
