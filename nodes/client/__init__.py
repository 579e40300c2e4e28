"""The client node: the text, the head, the noise, the tail and the sampling."""

from nodes.client.conversation import Conversation
from nodes.client.generation import Completion, Generation, GenerationStats, Token
from nodes.client.node import USUAL, ClientNode

__all__ = [
    "USUAL",
    "ClientNode",
    "Completion",
    "Conversation",
    "Generation",
    "GenerationStats",
    "Token",
]
