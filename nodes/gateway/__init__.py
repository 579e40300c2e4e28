"""The gateway: OpenAI's HTTP API in front of a client node, on the machine that may see the text.

What is named here is imported when it is asked for: starlette and uvicorn are an extra.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedsea_mq.errors import ConfigError

if TYPE_CHECKING:
    from nodes.gateway.app import create_app
    from nodes.gateway.node import GatewayNode

_HOMES = {"GatewayNode": "nodes.gateway.node", "create_app": "nodes.gateway.app"}
_EXTRA = frozenset({"starlette", "uvicorn"})

__all__ = ["GatewayNode", "create_app"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        raise ConfigError(
            f"the gateway needs {error.name}: install fedsea_mq with the extra gateway"
        ) from error
