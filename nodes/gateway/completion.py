"""Completions: what may be asked."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from nodes.gateway.request import MAX_TOP_LOGPROBS, GenerationRequest, NewTokens

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[TokenId], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]


def _several(value: Any) -> Any:
    """Several prompts, where there is one; token ids alone are one."""
    alone = isinstance(value, str) or (isinstance(value, list) and _begins_with_a_token(value))
    return [value] if alone else value


def _begins_with_a_token(value: list[Any]) -> bool:
    return bool(value) and isinstance(value[0], int)


Prompts = Annotated[list[Text | Tokens], BeforeValidator(_several), Field(min_length=1)]


class CompletionRequest(GenerationRequest):
    """The body of `POST /v1/completions`. A prompt is a text or token ids; there may be several."""

    prompt: Prompts
    max_tokens: NewTokens = 16
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool = False
    best_of: int | None = None
    suffix: Literal[""] = ""

    @model_validator(mode="after")
    def _can_be_done(self) -> Self:
        if self.best_of not in {None, self.n}:
            raise ValueError("best_of other than n is not supported")
        if self.echo and self.logprobs is not None:
            raise ValueError(
                "echo with logprobs is not supported: a prompt's tokens are not scored"
            )
        return self
