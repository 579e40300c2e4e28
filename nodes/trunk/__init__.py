"""The trunk node: the middle blocks, their KV cache and the batching of many clients' sessions."""

from fedsea_mq.imports import without_collection

with without_collection():
    from nodes.trunk.node import TrunkNode

__all__ = ["TrunkNode"]
