"""The parties: clients, which hold the text, trunks, which do most of the work, and aggregators.

What is named here is imported when it is asked for: no process waits for the parts of another.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nodes.aggregator import AggregatorNode
    from nodes.client import ClientNode, Completion, Conversation, Generation, Token
    from nodes.gateway import GatewayNode
    from nodes.trainer import TrainingClient
    from nodes.trunk import TrunkNode

_HOMES = {
    "AggregatorNode": "nodes.aggregator",
    "ClientNode": "nodes.client",
    "Completion": "nodes.client",
    "Conversation": "nodes.client",
    "GatewayNode": "nodes.gateway",
    "Generation": "nodes.client",
    "Token": "nodes.client",
    "TrainingClient": "nodes.trainer",
    "TrunkNode": "nodes.trunk",
}

__all__ = [
    "AggregatorNode",
    "ClientNode",
    "Completion",
    "Conversation",
    "GatewayNode",
    "Generation",
    "Token",
    "TrainingClient",
    "TrunkNode",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
