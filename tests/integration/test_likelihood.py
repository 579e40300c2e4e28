"""How likely continuations are, over the split system and by the unsplit model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from fedsea_mq.cli.score import SplitModel
from fedsea_mq.errors import ContextOverflow, InvalidPrompt
from fedsea_mq.tasks.encoding import Encoder
from fedsea_mq.tasks.evaluation import Responder
from fedsea_mq.tasks.task import Example, Limits, Prompt
from tests.integration.systems import running, until

PROMPTS = [[5], list(range(7, 24)), list(range(290, 200, -1))]
CONTINUATIONS = [[9], [10], [9, 10, 11], list(range(30, 50)), [9, 10], [9]]


def oracle(model: torch.nn.Module, prompt: list[int], continuation: list[int]) -> float:
    ids = torch.tensor([prompt + continuation])
    with torch.no_grad():
        scores = model(ids).logits[0].log_softmax(-1)
    rows = range(len(prompt) - 1, ids.shape[1] - 1)
    return sum(float(scores[row, token]) for row, token in zip(rows, continuation, strict=True))


@pytest.mark.parametrize("tail", [0, 1])
@pytest.mark.parametrize("frame", [4, 512])
async def test_log_likelihoods_are_the_unsplit_models(
    tiny_llama: Path, tail: int, frame: int
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    overrides = [f"model.tail_blocks={tail}", f"trunk.max_frame_positions={frame}"]
    async with running(tiny_llama, *overrides) as system:
        asked = [system.client.log_likelihoods(prompt, CONTINUATIONS) for prompt in PROMPTS]
        found = await asyncio.gather(*asked)
        await until(lambda: system.trunks[0].sessions == 0)
    for prompt, likelihoods in zip(PROMPTS, found, strict=True):
        wanted = [oracle(model, prompt, continuation) for continuation in CONTINUATIONS]
        assert likelihoods == pytest.approx(wanted, abs=1e-4)


async def test_what_cannot_be_scored_is_refused(tiny_llama: Path) -> None:
    async with running(tiny_llama) as system:
        for prompt, continuations in (([], [[1]]), ([1], []), ([1], [[1], []]), ([1], [[300]])):
            with pytest.raises(InvalidPrompt):
                await system.client.log_likelihoods(prompt, continuations)
        with pytest.raises(ContextOverflow, match="500 tokens and 14 new"):
            await system.client.log_likelihoods([1] * 500, [[1] * 14])
        await system.client.log_likelihoods([1] * 500, [[1] * 13])


async def test_the_embedded_model_chooses_as_the_unsplit_one_does() -> None:
    form = "Marina keeps a red fox. Question: What does Marina keep? Answer:"
    candidates = ("a red fox", "a grey owl", "Toban", "red")
    example = Example(Prompt(form), "a red fox", candidates)
    async with running("embedded") as system:
        client = system.client
        folder = client.model.checkpoint.folders[0]
        encoder = Encoder(client.tokenizer, 700)
        chosen = await Responder(SplitModel(client), client.tokenizer, Limits())(example)
        prompt = encoder.prompt(example.prompt)
        answers = [encoder.answer(example, text) for text in candidates]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    wanted = [oracle(model, prompt, answer) for answer in answers]
    assert chosen == candidates[wanted.index(max(wanted))]
