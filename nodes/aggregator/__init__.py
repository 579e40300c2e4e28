"""The aggregator of a training run: rounds, and the mean of the clients' head and tail adapters."""

from fedsea_mq.imports import without_collection

with without_collection():
    from nodes.aggregator.node import AggregatorNode

__all__ = ["AggregatorNode"]
