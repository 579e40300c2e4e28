"""The aggregator of a training run: rounds, and the mean of the clients' head and tail adapters."""

from nodes.aggregator.node import AggregatorNode

__all__ = ["AggregatorNode"]
