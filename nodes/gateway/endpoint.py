"""`POST` of a chat or a completion: admitted, read, prepared, answered; or cancelled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from fedsea_mq.errors import FedSeaError
from fedsea_mq.gateway_settings import GatewaySettings
from fedsea_mq.log import get_logger
from fedsea_mq.telemetry.trace import CALLER, TraceContext
from nodes.gateway.admission import Admission
from nodes.gateway.answer import DONE, event
from nodes.gateway.choice import together
from nodes.gateway.errors import refusal
from nodes.gateway.exchange import check_json, read_body, unless_gone
from nodes.gateway.prepare import Prepared
from nodes.gateway.request import R, parsed
from nodes.gateway.streaming import EventStream, stream

_log = get_logger(__name__)


class Endpoint(Generic[R]):
    """An ASGI application for requests of one kind.

    `prepare` makes choices of a request and the size of its body.
    """

    def __init__(
        self,
        kind: type[R],
        prepare: Callable[[R, int], Awaitable[Prepared]],
        settings: GatewaySettings,
        admission: Admission,
    ) -> None:
        self._kind = kind
        self._prepare = prepare
        self._settings = settings
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request.

        Raises:
            ClientGone: nobody waits for the answer any more.
            Exception: as `refusal` takes it, before anything of an answer was sent.
        """
        check_json(scope)
        # A task of its own answers each request: its sessions go on with its caller's trace.
        CALLER.set(TraceContext.from_traceparent(Headers(scope=scope).get("traceparent", "")))
        most, within_s = self._settings.max_body_kb << 10, self._settings.stalled_s
        with self._admission.place():
            body = await read_body(receive, most, within_s)
            prepared = await self._prepare(parsed(self._kind, body), len(body))
            if prepared.streamed:
                await unless_gone(receive, self._stream(prepared, send))
            else:
                await unless_gone(receive, _answer(prepared, scope, receive, send))
                _tell(prepared)

    async def _stream(self, prepared: Prepared, send: Send) -> None:
        out, answer = EventStream(send, self._settings.stalled_s), prepared.answer
        try:
            await stream(prepared.choices, answer, out)
        except FedSeaError as error:
            if not out.begun:
                raise
            refused = refusal(error)
            _tell(prepared, failed=refused.code)
            await out.write(event(refused.body()), more=False)
            return
        stats = [choice.stats for choice in prepared.choices]
        usage = answer.usage_event(stats, prepared.prompts) if prepared.with_usage else b""
        await out.write(usage + DONE, more=False)
        _tell(prepared)


async def _answer(prepared: Prepared, scope: Scope, receive: Receive, send: Send) -> None:
    async with together() as group:
        tasks = [group.create_task(choice.whole()) for choice in prepared.choices]
    said = [
        prepared.answer.choice(choice.index, task.result(), scored=prepared.scored)
        for choice, task in zip(prepared.choices, tasks, strict=True)
    ]
    stats = [choice.stats for choice in prepared.choices]
    whole = prepared.answer.whole(said, stats, prepared.prompts)
    await JSONResponse(whole)(scope, receive, send)


def _tell(prepared: Prepared, failed: str | None = None) -> None:
    """One line a request, also of one that `failed` after its first tokens."""
    stats = [choice.stats for choice in prepared.choices]
    generation = prepared.choices[0].generation
    figures = {
        "choices": len(stats),
        "prompt_tokens": stats[0].prompt_tokens,
        "new_tokens": sum(one.new_tokens for one in stats),
        "ttft_ms": round(max(one.ttft_ms for one in stats), 1),
        "trace_id": generation.trace_id,
    }
    if failed is None:
        _log.info("answered", finish=generation.finish.value, **figures)
    else:
        _log.warning("broken off", code=failed, **figures)
