"""The client node: everything that may see text, behind one async context manager."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Final, Self

import torch
from transformers import PreTrainedTokenizerBase

from fedsea_mq.errors import (
    CheckpointError,
    ContextOverflow,
    InvalidPrompt,
    NotRunning,
)
from fedsea_mq.log import get_logger
from fedsea_mq.model.chat import Message, Tool, chat_tokens, check_chats
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.protocol.messages import StatusReport
from fedsea_mq.serving.drafting import Drafting, DraftLength, Drafts, PromptLookup
from fedsea_mq.settings import Settings, Speculation
from fedsea_mq.telemetry.spans import NO_SPANS, spans_of
from fedsea_mq.telemetry.trace import RequestTrace, TraceContext
from fedsea_mq.transport.link import MakeLink, PeerLink
from fedsea_mq.transport.status import status_report
from nodes.client.conversation import Conversation
from nodes.client.draft_model import ModelDrafts
from nodes.client.engine import ClientEngine, Loaded
from nodes.client.generation import Generation, GenerationPlan, Token, decode
from nodes.client.likelihood import check_continuations, log_likelihoods
from nodes.client.metrics import ClientMetrics
from nodes.client.request_watch import RequestWatch
from nodes.client.session import ClientSession
from nodes.session_wires import SessionWires, session_wires

_log = get_logger(__name__)
_GREEDY = SamplingSettings()
# The trunk reserves KV for all of them, so not as many as a long-context model could take.
_CHAT_POSITIONS = 4096
# Not a name that an adapter can have: the one of the settings, `client.adapter`, if there is one.
USUAL: Final = "*"
OnLogits = Callable[[torch.Tensor], None]


class ClientNode:
    """Head, noise, tail and sampling for any number of concurrent sessions.

        async with ClientNode(settings) as client:
            async for token in client.generate("Once"):
                print(token.text, end="")

    `make_link` is what connects it to others, for links that are not plain; `engine` what computes,
    by default the parts that the settings say; the ids of sessions and traces come from `entropy`.
    `metrics` is what it shows. A request goes on with the trace of `telemetry.trace.CALLER`, if
    there is one, and begins one otherwise. Where an `adapter`
    can be named, it is one of `client.adapters`; by default that of `client.adapter`, and None is
    none.

    Raises on entry: `CheckpointError`, `UnsupportedModel`, `IllegalCut` or `AdapterError`, as the
    model and the adapters say; `KeyFileError`, `PlaintextRefused` or `ConfigError`, as the keys
    are.
    """

    def __init__(
        self,
        settings: Settings,
        make_link: MakeLink = PeerLink,
        *,
        engine: ClientEngine | None = None,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._settings = settings
        self._make_link = make_link
        self._engine = engine or ClientEngine(settings)
        self._entropy = entropy
        self._stack = AsyncExitStack()
        self._wires: SessionWires | None = None
        self._draft_length = DraftLength(settings.client.max_draft)
        self.metrics = ClientMetrics()
        self._spans = NO_SPANS

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            spans = spans_of(self._settings.telemetry, "client", "client")
            self._spans = await stack.enter_async_context(spans)
            await stack.enter_async_context(self._engine)
            wires = session_wires(
                self._settings, self._make_link, self._entropy, self.metrics.counts
            )
            self._wires = await stack.enter_async_context(wires)
            self.metrics.watch(self._engine.batcher, self._wires.requests)
            self._wires.background.start(self._engine.batcher.watch(), "fedsea client compute")
            self._stack = stack.pop_all()
        wire = self._settings.client.wire_dtype.value
        _log.info("client ready", noise_std=round(self.noise_std, 6), wire=wire)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.__aexit__(None, None, None)
        self._wires = None

    @property
    def model(self) -> Loaded:
        """The client's parts of the model."""
        return self._engine.loaded

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on each element of the states that leave the head."""
        return self.model.noise.std

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer. Raises `CheckpointError` if it has none."""
        return self.model.checkpoint.tokenizer

    def generate(
        self,
        prompt: str | Sequence[int],
        sampling: SamplingSettings = _GREEDY,
        *,
        adapter: str | None = USUAL,
        strip_start: bool = False,
        on_logits: OnLogits | None = None,
    ) -> Generation:
        """Continue a text, or token ids; `strip_start` drops white space before the first word.

        `on_logits`, if given, sees the fp32 logits `[vocab]` of each step, on the compute thread.

        Raises, when iterated:
            InvalidPrompt: empty, or ids outside the vocabulary.
            ContextOverflow: prompt and new tokens exceed the model's positions.
            AdapterError: the client has no adapter of this name.
            RemoteError: as the broker or the trunk says.
        """
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        plan = self._plan(sampling, adapter, strip_start=strip_start, on_logits=on_logits)
        return self._generation(ids, plan)

    def chat(
        self,
        messages: list[Message],
        sampling: SamplingSettings = _GREEDY,
        *,
        adapter: str | None = USUAL,
        on_logits: OnLogits | None = None,
    ) -> Generation:
        """Answer chat messages (`role`, `content`) by the model's chat template; see `generate`."""
        return self.generate(
            self.render(messages),
            sampling,
            adapter=adapter,
            strip_start=True,
            on_logits=on_logits,
        )

    def conversation(
        self,
        sampling: SamplingSettings = _GREEDY,
        max_positions: int = _CHAT_POSITIONS,
        *,
        adapter: str | None = USUAL,
    ) -> Conversation:
        """A chat that keeps its session, of at most `max_positions` tokens, from turn to turn."""
        positions = min(max_positions, self.model.max_positions)
        plan, watch = self._plan(sampling, adapter, strip_start=True), self._watch()
        new_session = partial(self._session, trace=watch.trace.own)
        return Conversation(new_session, self.render, plan, positions, watch)

    async def log_likelihoods(
        self,
        prompt: Sequence[int],
        continuations: Sequence[Sequence[int]],
        *,
        adapter: str | None = USUAL,
    ) -> list[float]:
        """The natural log-likelihood of each continuation, its tokens summed, given the prompt.

        Raises:
            InvalidPrompt: an empty prompt or continuation, or ids outside the vocabulary.
            ContextOverflow: more positions than the model holds.
            AdapterError: the client has no adapter of this name.
            RemoteError: as the broker or the trunk says.
        """
        check_continuations(continuations, self.model.vocab)
        positions = self._positions(prompt, max(map(len, continuations)))
        async with self.session(positions, adapter) as session:
            return await log_likelihoods(session, prompt, continuations)

    def session(self, max_positions: int, adapter: str | None = USUAL) -> ClientSession:
        """A bare session, to advance token by token. Use with `async with`.

        Raises:
            AdapterError: the client has no adapter of this name.
        """
        trace = RequestTrace.begin(self._entropy)
        return self._session(max_positions, self._named(adapter), trace.own)

    def _session(
        self, max_positions: int, adapter: str | None, trace: TraceContext
    ) -> ClientSession:
        return ClientSession(self._engine, self._running, max_positions, adapter, trace)

    def _watch(self) -> RequestWatch:
        trace = RequestTrace.begin(self._entropy)
        return RequestWatch(trace, self._entropy, self._spans, self.metrics.requests)

    @property
    def _running(self) -> SessionWires:
        if self._wires is None:
            raise NotRunning("the client node is not running")
        return self._wires

    def _named(self, adapter: str | None) -> str | None:
        return self._settings.client.adapter if adapter == USUAL else adapter

    def _generation(self, prompt: list[int], plan: GenerationPlan) -> Generation:
        watch = self._watch()

        async def steps(generation: Generation) -> AsyncGenerator[Token]:
            positions = self._positions(prompt, plan.sampling.max_new_tokens)
            session = self._session(positions, plan.adapter, watch.trace.own)
            # One count from the opening on: who is refused has stats, too.
            session.traffic = generation.stats.traffic
            async with session:
                async for token in decode(session, prompt, plan, generation):
                    yield token

        return Generation(steps, watch)

    def _positions(self, prompt: Sequence[int], new: int) -> int:
        if not prompt:
            raise InvalidPrompt("the prompt is empty")
        # The last token is sampled or scored, but never cached.
        positions = len(prompt) + new - 1
        if positions > self.model.max_positions:
            raise ContextOverflow(
                f"a prompt of {len(prompt)} tokens and {new} new ones, "
                f"the model holds {self.model.max_positions} positions"
            )
        return positions

    def _plan(
        self,
        sampling: SamplingSettings,
        adapter: str | None,
        *,
        strip_start: bool = False,
        on_logits: OnLogits | None = None,
    ) -> GenerationPlan:
        try:
            tokenizer: PreTrainedTokenizerBase | None = self.tokenizer
        except CheckpointError:
            tokenizer = None
        speculates = self._settings.client.speculation is not Speculation.OFF
        named = self._named(adapter)
        drafts = partial(self._drafting, named) if speculates else None
        return GenerationPlan(
            tokenizer, self.end_tokens, sampling, strip_start, on_logits, drafts, named
        )

    def _drafting(self, adapter: str | None, positions: int) -> Drafting:
        drafter, batcher = self._engine.drafter, self._engine.batcher
        source: Drafts = (
            PromptLookup() if drafter is None else ModelDrafts(drafter, batcher, positions, adapter)
        )
        return Drafting(self._draft_length, source)

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end a generation: the model's, or else its tokenizer's."""
        said = self.model.checkpoint.eos_token_ids
        if said:
            return said
        with suppress(CheckpointError):
            if self.tokenizer.eos_token_id is not None:
                return frozenset({int(self.tokenizer.eos_token_id)})
        return said

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Raises `CheckpointError` without a tokenizer."""
        return list(self.tokenizer(text)["input_ids"])

    def check_chats(self) -> None:
        """Raise `InvalidPrompt` without a chat template, `CheckpointError` without a tokenizer."""
        check_chats(self.tokenizer)

    def render(self, messages: list[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Token ids of a chat, up to where the answer begins; see `chat_tokens`."""
        return chat_tokens(self.tokenizer, messages, tools=tools)

    async def status(self, give_up_s: float | None = None) -> StatusReport:
        """The broker's report, by the link that the sessions use.

        `give_up_s` is how long it is waited for, by default as long as for anything.

        Raises:
            PeerUnreachable: the broker does not answer.
        """
        return await status_report(self._running.requests, give_up_s)
