"""The parties: client nodes, which hold the text, and trunk nodes, which do most of the work."""

from nodes.client import ClientNode, Completion, Conversation, Generation, Token
from nodes.trunk import TrunkNode

__all__ = ["ClientNode", "Completion", "Conversation", "Generation", "Token", "TrunkNode"]
