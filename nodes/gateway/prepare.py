"""From a request to generations that only wait to be run: names, prompts, lengths, sampling."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from transformers import PreTrainedTokenizerBase

from fedsea_mq.errors import CheckpointError
from fedsea_mq.gateway_settings import GatewaySettings
from nodes.client import ClientNode
from nodes.gateway.answer import Answer
from nodes.gateway.chat import ChatRequest
from nodes.gateway.chat_answer import ChatAnswer
from nodes.gateway.choice import Choice
from nodes.gateway.completion import CompletionRequest
from nodes.gateway.completion_answer import CompletionAnswer
from nodes.gateway.errors import invalid
from nodes.gateway.meter import Meter
from nodes.gateway.models import Models
from nodes.gateway.request import GenerationRequest
from nodes.gateway.scores import Scores, TokenTexts
from nodes.gateway.tool_calls import ToolCallReader

T = TypeVar("T")
# Requests of up to so many bytes are tokenised on the loop, in less time than another thread takes
# to wake; longer ones would hold up everybody's tokens.
_SHORT_BYTES: Final = 16_384


@dataclass(frozen=True, slots=True)
class Prepared:
    """The choices of a request, `n` for each of its prompts, and how they are told."""

    answer: Answer
    choices: Sequence[Choice]
    prompts: int
    scored: bool
    streamed: bool
    with_usage: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one answer, or `n` of them, go on from; `said` is text that they begin with."""

    tokens: list[int]
    said: str = ""


@dataclass(frozen=True, slots=True)
class Terms:
    """How the prompts of a request are gone on from.

    `new_tokens` is None where it does not say, `top` where no scores are wanted.
    """

    new_tokens: int | None
    top: int | None
    strip_start: bool = False
    tools: frozenset[str] = frozenset()


class Preparer:
    """Prepares requests to a client node."""

    def __init__(
        self, client: ClientNode, settings: GatewaySettings, models: Models, meter: Meter
    ) -> None:
        self._client = client
        self._settings = settings
        self._models = models
        self._meter = meter
        self._fingerprint = f"fp_{client.model.fingerprint[:12]}"
        self._texts: TokenTexts | None = None
        self._tokenizing = asyncio.Lock()

    async def chat(self, request: ChatRequest, size: int) -> Prepared:
        """A chat, of a body of `size` bytes. Raises `RequestRefused` or `InvalidPrompt`."""
        self._check(request, prompts=1)
        self._tokenizer()
        messages = [message.for_template() for message in request.messages]
        tokens = await self._off_loop(size, partial(self._client.render, messages, request.offered))
        terms = Terms(request.new_tokens, request.top, True, request.callable_names)
        answer = ChatAnswer(request.model, self._fingerprint)
        return self._prepared(request, [Prompt(tokens)], terms, answer)

    async def completion(self, request: CompletionRequest, size: int) -> Prepared:
        """Completions, of a body of `size` bytes. Raises `RequestRefused` or `InvalidPrompt`."""
        self._check(request, prompts=len(request.prompt))
        prompts = await self._off_loop(
            size, lambda: [self._prompt(one, echo=request.echo) for one in request.prompt]
        )
        terms = Terms(request.max_tokens, request.logprobs)
        answer = CompletionAnswer(request.model, self._fingerprint)
        return self._prepared(request, prompts, terms, answer)

    def _check(self, request: GenerationRequest, prompts: int) -> None:
        self._models.adapter(request.model)
        most = self._settings.max_choices
        if prompts * request.n > most:
            raise invalid(f"{prompts} prompts with {request.n} answers each, at most {most}", "n")

    async def _off_loop(self, size: int, work: Callable[[], T]) -> T:
        if size <= _SHORT_BYTES:
            return work()
        async with self._tokenizing:  # one at a time: all would be of the same few cores
            return await asyncio.to_thread(work)

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        try:
            return self._client.tokenizer
        except CheckpointError:
            raise invalid("the model has no tokenizer: it completes token ids only") from None

    def _prompt(self, prompt: str | list[int], *, echo: bool) -> Prompt:
        if isinstance(prompt, str):
            self._tokenizer()
            return Prompt(self._client.encode(prompt), prompt if echo else "")
        return Prompt(prompt, str(self._tokenizer().decode(prompt)) if echo else "")

    def _prepared(
        self, request: GenerationRequest, prompts: Sequence[Prompt], terms: Terms, answer: Answer
    ) -> Prepared:
        each = [prompt for prompt in prompts for _ in range(request.n)]
        return Prepared(
            answer,
            [self._choice(request, number, one, terms) for number, one in enumerate(each)],
            prompts=len(prompts),
            scored=terms.top is not None,
            streamed=request.stream,
            with_usage=request.stream_options.include_usage,
        )

    def _choice(
        self, request: GenerationRequest, number: int, prompt: Prompt, terms: Terms
    ) -> Choice:
        scores = None if terms.top is None else Scores(self._token_texts(), terms.top)
        generation = self._client.generate(
            prompt.tokens,
            request.sampling(self._new_tokens(terms.new_tokens, prompt), number % request.n),
            adapter=self._models.adapter(request.model),
            strip_start=terms.strip_start,
            on_logits=None if scores is None else scores.note,
        )
        return Choice(
            number,
            generation,
            self._meter,
            frozenset() if request.ignore_eos else self._client.end_tokens,
            prompt.said,
            scores,
            ToolCallReader(terms.tools) if terms.tools else None,
        )

    def _new_tokens(self, asked: int | None, prompt: Prompt) -> int:
        if asked is None:
            # The last token is sampled, and takes no position.
            room = self._client.model.max_positions - len(prompt.tokens) + 1
            return max(1, min(self._settings.default_max_tokens, room))
        if asked > self._settings.max_tokens:
            raise invalid(f"{asked} new tokens, at most {self._settings.max_tokens}", "max_tokens")
        return asked

    def _token_texts(self) -> TokenTexts:
        if self._texts is None:
            self._texts = TokenTexts(self._tokenizer())
        return self._texts
