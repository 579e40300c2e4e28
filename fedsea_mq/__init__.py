"""fedsea_mq: private split-LLM inference over an asyncio message queue.

The public entry points are `nodes.ClientNode`, `nodes.TrunkNode` and `broker.Broker`; this package
holds what they are made of.
"""

__version__ = "0.1.0"
