"""The parties: clients, which hold the text, trunks, which do most of the work, and aggregators."""

from nodes.aggregator import AggregatorNode
from nodes.client import ClientNode, Completion, Conversation, Generation, Token
from nodes.trunk import TrunkNode

__all__ = [
    "AggregatorNode",
    "ClientNode",
    "Completion",
    "Conversation",
    "Generation",
    "Token",
    "TrunkNode",
]
