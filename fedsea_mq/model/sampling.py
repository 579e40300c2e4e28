"""From logits to the next token, on the client.

The warpers are transformers' own, in its order, so that a seed gives the tokens that
`generate(do_sample=True)` gives on the unsplit model.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


class SamplingSettings(BaseModel):
    """How tokens are chosen. Temperature 0 is greedy; top_k 0 and top_p 1 are off."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_new_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 128
    temperature: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    repetition_penalty: Annotated[float, Field(gt=0.0, le=10.0)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    ignore_eos: bool = False
    seed: int | None = None


class Sampler:
    """Chooses the tokens of one generation, which goes on from `prompt` tokens."""

    def __init__(self, settings: SamplingSettings, prompt: int = 0) -> None:
        self._greedy = settings.temperature == 0.0
        self._generator = torch.Generator()
        if settings.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(settings.seed)
        self._warpers = _warpers(settings, prompt)

    def choose(self, tokens: list[int], logits: torch.Tensor) -> int:
        """The next token after `tokens`, from fp32 logits `[vocab]`."""
        scores = logits.cpu()[None]
        if self._warpers:
            scores = self._warpers(torch.tensor([tokens]), scores)
        if self._greedy:
            return int(scores.argmax())
        weights = scores.softmax(dim=-1)
        return int(torch.multinomial(weights, 1, generator=self._generator))


class _OutputPenalties(LogitsProcessor):
    """OpenAI's penalties: on tokens that were generated, once (presence) and each time (frequency).

    transformers has none: its repetition penalty is a factor, and counts the prompt's tokens.
    """

    def __init__(self, settings: SamplingSettings, prompt: int) -> None:
        self._presence = settings.presence_penalty
        self._frequency = settings.frequency_penalty
        self._prompt = prompt

    def __call__(self, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores `[1, vocab]` after tokens `[1, positions]`."""
        times = torch.bincount(tokens[0, self._prompt :], minlength=scores.shape[-1])
        return scores - self._frequency * times - self._presence * (times > 0)


def _warpers(settings: SamplingSettings, prompt: int) -> LogitsProcessorList:
    chosen = LogitsProcessorList()
    if settings.repetition_penalty != 1.0:
        chosen.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.presence_penalty or settings.frequency_penalty:
        chosen.append(_OutputPenalties(settings, prompt))
    if settings.temperature == 0.0:
        return chosen
    if settings.temperature != 1.0:
        chosen.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        chosen.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1.0:
        chosen.append(TopPLogitsWarper(settings.top_p))
    return chosen
