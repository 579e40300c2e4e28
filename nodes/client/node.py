"""The client node: everything that may see text, behind one async context manager."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Final, Self

import torch
from transformers import PreTrainedTokenizerBase

from fedsea_mq.errors import (
    CheckpointError,
    ContextOverflow,
    InvalidPrompt,
    NotRunning,
    RemoteError,
)
from fedsea_mq.log import get_logger
from fedsea_mq.model.chat import Message, chat_tokens, check_chats
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.security.client_seals import ClientSeals
from fedsea_mq.security.keyring import Keyring
from fedsea_mq.serving.background import Background
from fedsea_mq.serving.drafting import Drafting, DraftLength, Drafts, PromptLookup
from fedsea_mq.settings import Settings, Speculation
from fedsea_mq.telemetry.spans import NO_SPANS, spans_of
from fedsea_mq.telemetry.trace import RequestTrace, TraceContext
from fedsea_mq.transport.broker_links import BrokerLinks
from fedsea_mq.transport.direct_links import DirectLinks
from fedsea_mq.transport.link import MakeLink, PeerLink
from fedsea_mq.transport.requests import Patience, Requests
from nodes.client.conversation import Conversation
from nodes.client.draft_model import ModelDrafts
from nodes.client.engine import ClientEngine, Loaded
from nodes.client.generation import Generation, GenerationPlan, Token, decode
from nodes.client.likelihood import check_continuations, log_likelihoods
from nodes.client.metrics import ClientMetrics
from nodes.client.request_watch import RequestWatch
from nodes.client.session import ClientSession, Wires

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
        self._wires: Wires | None = None
        self._draft_length = DraftLength(settings.client.max_draft)
        self.metrics = ClientMetrics()
        self._spans = NO_SPANS

    async def __aenter__(self) -> Self:
        seals = ClientSeals.of(self._settings.security)
        async with AsyncExitStack() as stack:
            spans = spans_of(self._settings.telemetry, "client", "client")
            self._spans = await stack.enter_async_context(spans)
            await stack.enter_async_context(self._engine)
            broker, client = self._settings.broker, self._settings.client
            keyring = Keyring.load(self._settings.security)
            links = await stack.enter_async_context(self._links(keyring))
            patience = Patience(client.request_timeout_s, client.give_up_s)
            requests = Requests(links.send, patience, broker.at, seals, links.unanswered)
            direct = DirectLinks(
                self._make_link,
                requests,
                wanted=client.direct,
                max_part_bytes=broker.max_part_mb << 20,
                keyring=keyring,
                counts=self.metrics.frames,
            )
            self.metrics.watch(self._engine.batcher, requests)
            await stack.enter_async_context(direct)
            background = await stack.enter_async_context(Background())
            background.start(self._engine.batcher.watch(), "fedsea client compute")
            self._wires = Wires(requests, direct, background, self.metrics, self._entropy)
            self._stack = stack.pop_all()
        _log.info("client ready", noise_std=round(self.noise_std, 6), wire=client.wire_dtype.value)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.__aexit__(None, None, None)
        self._wires = None

    def _links(self, keyring: Keyring) -> BrokerLinks:
        broker = self._settings.broker

        def connect(
            endpoint: str,
            on_frame: Callable[[Frame], None],
            on_refused: Callable[[RemoteError], None],
        ) -> PeerLink:
            return self._make_link(
                endpoint,
                on_frame,
                max_part_bytes=broker.max_part_mb << 20,
                keys=keyring.to_broker(endpoint),
                on_refused=on_refused,
                counts=self.metrics.frames,
            )

        silent_s = broker.timeout_ms / 1000
        return BrokerLinks(broker.all_for_clients, connect, self._receive, self._refused, silent_s)

    def _receive(self, frame: Frame) -> None:
        if self._wires is not None:
            self._wires.requests.receive(frame)

    def _refused(self, error: RemoteError) -> None:
        if self._wires is not None:
            self._wires.requests.refuse(error)

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
        on_logits: OnLogits | None = None,
    ) -> Generation:
        """Continue a text, or token ids.

        `on_logits`, if given, sees the fp32 logits `[vocab]` of each step, on the compute thread.

        Raises, when iterated:
            InvalidPrompt: empty, or ids outside the vocabulary.
            ContextOverflow: prompt and new tokens exceed the model's positions.
            AdapterError: the client has no adapter of this name.
            RemoteError: as the broker or the trunk says.
        """
        ids = self._encode(prompt) if isinstance(prompt, str) else list(prompt)
        return self._generation(ids, self._plan(sampling, adapter, on_logits=on_logits))

    def chat(
        self,
        messages: list[Message],
        sampling: SamplingSettings = _GREEDY,
        *,
        adapter: str | None = USUAL,
        on_logits: OnLogits | None = None,
    ) -> Generation:
        """Answer chat messages (`role`, `content`) by the model's chat template; see `generate`."""
        plan = self._plan(sampling, adapter, strip_start=True, on_logits=on_logits)
        return self._generation(self._render(messages), plan)

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
        return Conversation(new_session, self._render, plan, positions, watch)

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
        if self._wires is None:
            raise NotRunning("the client node is not running")
        return ClientSession(self._engine, self._wires, max_positions, adapter, trace)

    def _watch(self) -> RequestWatch:
        trace = RequestTrace.begin(self._entropy)
        return RequestWatch(trace, self._entropy, self._spans, self.metrics.requests)

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
        eos = self._eos(tokenizer)
        speculates = self._settings.client.speculation is not Speculation.OFF
        named = self._named(adapter)
        drafts = partial(self._drafting, named) if speculates else None
        return GenerationPlan(tokenizer, eos, sampling, strip_start, on_logits, drafts, named)

    def _drafting(self, adapter: str | None, positions: int) -> Drafting:
        drafter, batcher = self._engine.drafter, self._engine.batcher
        source: Drafts = (
            PromptLookup() if drafter is None else ModelDrafts(drafter, batcher, positions, adapter)
        )
        return Drafting(self._draft_length, source)

    def _eos(self, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
        said = self.model.checkpoint.eos_token_ids
        if not said and tokenizer is not None and tokenizer.eos_token_id is not None:
            return frozenset({int(tokenizer.eos_token_id)})
        return said

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def check_chats(self) -> None:
        """Raise `InvalidPrompt` without a chat template, `CheckpointError` without a tokenizer."""
        check_chats(self.tokenizer)

    def _render(self, messages: list[Message]) -> list[int]:
        return chat_tokens(self.tokenizer, messages)
