"""A chat that keeps its session: each turn sends only the positions that are new."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Self

from fedsea_mq.errors import ContextOverflow
from fedsea_mq.model.chat import Message
from fedsea_mq.telemetry.spans import NO_SPAN
from nodes.client.generation import Generation, GenerationPlan, Token, decode
from nodes.client.request_watch import RequestWatch
from nodes.client.session import ClientSession


class Conversation:
    """Messages so far and the session that holds them. Use with `async with`.

    A turn that is cancelled or fails leaves the messages as they were before it.
    """

    def __init__(
        self,
        new_session: Callable[[int, str | None], ClientSession],
        render: Callable[[list[Message]], list[int]],
        plan: GenerationPlan,
        max_positions: int,
        watch: RequestWatch,
    ) -> None:
        self._new_session = new_session
        self._render = render
        self._plan = plan
        self._max_positions = max_positions
        self._watch = watch
        self._span = NO_SPAN
        self._stack = AsyncExitStack()
        self._session: ClientSession | None = None
        self.messages: list[Message] = []

    async def __aenter__(self) -> Self:
        self._span = self._watch.begin("conversation")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._forget()
        self._span.end()

    async def _forget(self) -> None:
        self._session = None
        await self._stack.aclose()

    def say(self, text: str) -> Generation:
        """The model's answer to `text`, as it comes."""
        messages = [*self.messages, {"role": "user", "content": text}]
        return self._generation(messages)

    def regenerate(self) -> Generation:
        """Another answer to the last thing said; what was sent for it is not sent anew."""
        asked = self.messages[:-1] if self._answered else self.messages
        return self._generation(asked)

    def _generation(self, messages: list[Message]) -> Generation:
        return Generation(partial(self._answer, messages), self._watch.below())

    @property
    def _answered(self) -> bool:
        return bool(self.messages) and self.messages[-1]["role"] == "assistant"

    async def _answer(
        self, messages: list[Message], generation: Generation
    ) -> AsyncGenerator[Token]:
        prompt = self._render(messages)
        if len(prompt) >= self._max_positions:
            raise ContextOverflow(
                f"the conversation has {len(prompt)} tokens, it may hold {self._max_positions}"
            )
        session = await self._session_at(prompt)
        room = self._max_positions - len(prompt)
        limit = min(self._plan.sampling.max_new_tokens, room)
        sampling = self._plan.sampling.model_copy(update={"max_new_tokens": limit})
        plan = replace(self._plan, sampling=sampling)
        said: list[str] = []
        finished = False
        try:
            async for token in decode(session, prompt, plan, generation):
                said.append(token.text)
                yield token
            finished = True
        finally:
            if not finished:
                # The trunk may hold more than we know of: start from a new session next time.
                await self._forget()
        self.messages = [*messages, {"role": "assistant", "content": "".join(said).strip()}]

    async def _session_at(self, prompt: list[int]) -> ClientSession:
        """The session, rolled back to what it has in common with `prompt`."""
        if self._session is None:
            session = self._new_session(self._max_positions, self._plan.adapter)
            self._session = await self._stack.enter_async_context(session)
        # At least the last token is advanced over: its logits are wanted.
        common = self._session.known(prompt[:-1])
        self._session.roll_back(common)
        return self._session
