"""One HTTP exchange below the level of requests: a bounded body, and a client that may go away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Receive, Scope

from nodes.gateway.errors import RequestRefused


class ClientGone(Exception):
    """Whoever asked has closed the connection: nobody waits for an answer."""


def check_json(scope: Scope) -> None:
    """Raise `RequestRefused` for a body that does not call itself JSON.

    A page of another origin can have a browser send anything else to loopback without asking.
    """
    said = dict(scope["headers"]).get(b"content-type", b"").partition(b";")[0].strip().lower()
    if said != b"application/json":
        raise RequestRefused(415, "expected content-type: application/json", "not_json")


async def read_body(receive: Receive, most: int, within_s: float) -> bytes:
    """The body of a request, of at most that many bytes.

    Raises:
        RequestRefused: it is larger, or takes longer to come.
        ClientGone: the client went before it was whole.
    """
    parts, size, more = list[bytes](), 0, True
    try:
        async with asyncio.timeout(within_s):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > most:
                    raise RequestRefused(413, f"a body of more than {most} bytes", "too_large")
                more = message.get("more_body", False)
    except TimeoutError:
        raise RequestRefused(408, f"the body took longer than {within_s:g} s", "slow") from None
    return b"".join(parts)


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do `work`, which answers a request whose body was read; cancel it if the client goes away.

    Raises:
        ClientGone: it did.
    """
    working, leaving = asyncio.create_task(work), asyncio.create_task(_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        working.result()
    finally:
        working.cancel()
        leaving.cancel()
        # Until its sessions are closed, whatever ends this.
        await asyncio.wait((working, leaving))


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
