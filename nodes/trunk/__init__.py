"""The trunk node: the middle blocks, their KV cache and the batching of many clients' sessions."""

from nodes.trunk.node import TrunkNode

__all__ = ["TrunkNode"]
