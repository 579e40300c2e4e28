"""What goes wrong, as OpenAI's API says it: a status, and a body that clients know how to read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.responses import JSONResponse

from fedsea_mq.errors import (
    AdapterMismatch,
    AdapterUnknown,
    Busy,
    ContextOverflow,
    FingerprintMismatch,
    InvalidPrompt,
    LimitExceeded,
    PeerUnreachable,
    RemoteError,
)

_INVALID: Final = "invalid_request_error"
_SERVER: Final = "server_error"


@dataclass(eq=False)
class RequestRefused(Exception):
    """A request that is not answered, and why. The message holds nothing that it said."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    type: str = _INVALID
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The error as clients read it, whole or in a stream."""
        said = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": said}

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def invalid(message: str, param: str | None = None, code: str | None = None) -> RequestRefused:
    """The request itself is wrong."""
    return RequestRefused(400, message, code, param)


def too_many_requests() -> RequestRefused:
    """As many are being answered as may be."""
    return RequestRefused(
        429,
        "as many requests as the gateway takes are being answered",
        "too_many_requests",
        type="rate_limit_error",
        headers={"retry-after": "1"},
    )


def internal() -> RequestRefused:
    """Something that nobody foresaw, and of which nobody is told more."""
    return RequestRefused(500, "internal error", "internal_error", type=_SERVER)


# The first that fits counts. A wrong request: its status is 400.
_WRONG: Final = {
    ContextOverflow: "context_length_exceeded",
    LimitExceeded: "context_length_exceeded",
    InvalidPrompt: "invalid_prompt",
}
# The system cannot serve it now; the same request may be served later.
_UNSERVED: Final = (
    Busy,
    PeerUnreachable,
    FingerprintMismatch,
    AdapterUnknown,
    AdapterMismatch,
)


def refusal(error: Exception) -> RequestRefused:
    """How an error of the client node is told."""
    if isinstance(error, RequestRefused):
        return error
    for kind, code in _WRONG.items():
        if isinstance(error, kind):
            return invalid(str(error), code=code)
    if not isinstance(error, RemoteError):
        return internal()
    wait_s = error.retry_after_s if isinstance(error, Busy) else 1.0
    return RequestRefused(
        503 if isinstance(error, _UNSERVED) else 502,
        str(error),
        error.code,
        type=_SERVER,
        headers={"retry-after": str(max(1, math.ceil(wait_s)))},
    )
