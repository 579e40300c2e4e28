"""The outermost layer: who may come in, and what is said and logged when something goes wrong."""

from __future__ import annotations

from collections.abc import Collection
from traceback import extract_tb
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedsea_mq.log import get_logger
from nodes.gateway.door import Door
from nodes.gateway.errors import refusal
from nodes.gateway.exchange import ClientGone

_log = get_logger(__name__)
# For those who restart a gateway or watch it: they need no key, and learn nothing.
_OPEN: Final = frozenset({"/healthz", "/readyz"})


class Guard:
    """Answers every error in OpenAI's form. Nothing that a request said gets into a log.

    The paths of the `page` need no key: somebody has to be asked for it.
    """

    def __init__(self, app: ASGIApp, door: Door, page: Collection[str]) -> None:
        self._app = app
        self._door = door
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or whatever else is not HTTP."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if path not in _OPEN:
                self._door.check(scope, needs_key=path not in self._page)
            await self._app(scope, receive, sending)
        except ClientGone:
            _log.info("client gone")
        except Exception as error:  # noqa: BLE001 - told and logged, but for what it may quote
            refused = refusal(error)
            if refused.status == 500:
                _log.error("internal error", **_kind_and_place(error))
            else:
                _log.info("refused", status=refused.status, code=refused.code)
            if not begun:  # else the server closes the connection
                await refused.response()(scope, receive, send)


def _kind_and_place(error: Exception) -> dict[str, str]:
    """What an error that nobody foresaw is, and where: its message may quote what it was given."""
    last = extract_tb(error.__traceback__)[-1]
    return {"error": type(error).__name__, "where": f"{last.filename}:{last.lineno}"}
