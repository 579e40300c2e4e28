"""The client node: the text, the head, the noise, the tail and the sampling."""

from fedsea_mq.imports import without_collection

with without_collection():
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
